/*
sentence = "The largest attention logit of each layer around a spike, against the layer's own past."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the spike" }
before = { type = "int", default = 64, meaning = "steps before the spike" }
after = { type = "int", default = 32, meaning = "steps after the spike" }
least = { type = "int", default = 16, low = 2, meaning = "steps that a baseline needs" }

[columns]
step = { unit = "step", meaning = "the step" }
offset = { unit = "steps", meaning = "after the spike, − ½: where the step's rectangle begins" }
offset2 = { unit = "steps", meaning = "after the spike, + ½: where the rectangle ends" }
layer = "decoder block"
head = "the head that has the logit"
value = "largest attention logit over the layer's heads"
baseline = "median of the value over the steps [-512, -64) before the spike"
z = { unit = "σ", meaning = "robust z of the value against those steps: `robust_z`" }
level = "how many of 3, 6, 10, 20, 40 |z| reaches, with the sign of z"
*/
with measured as (
    select
        step, layer as row, layer, max(attn_logit_max)::double as x,
        arg_max(head, attn_logit_max) as head
    from heads_along($run)
    where step >= $step - 512 and step <= $step + $after
    group by step, layer
),
-- include shared/heat.sql
final as (
    select step, "offset", offset2, layer, head, x as value, baseline, z, level
    from scored
    order by layer, step
)
select * from final
