/*
sentence = "The largest attention logit of a layer's heads around a spike, against their own past."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the spike" }
layer = { type = "int", default = 0, meaning = "the layer" }
before = { type = "int", default = 64, meaning = "steps before the spike" }
after = { type = "int", default = 32, meaning = "steps after the spike" }
least = { type = "int", default = 16, low = 2, meaning = "steps that a baseline needs" }

[columns]
step = { unit = "step", meaning = "the step" }
offset = { unit = "steps", meaning = "after the spike, − ½: where the step's rectangle begins" }
offset2 = { unit = "steps", meaning = "after the spike, + ½: where the rectangle ends" }
layer = "the layer"
head = "query head"
entropy = { unit = "nats", meaning = "mean attention entropy of the head" }
value = "largest attention logit of the head"
baseline = "median of the value over the steps [-512, -64) before the spike"
z = { unit = "σ", meaning = "robust z of the value against those steps: `robust_z`" }
level = "how many of 3, 6, 10, 20, 40 |z| reaches, with the sign of z"
*/
with measured as (
    select
        step, head as row, layer, head, attn_logit_max::double as x, attn_entropy_mean as entropy
    from heads_along($run)
    where layer = $layer and step >= $step - 512 and step <= $step + $after
),
-- include shared/heat.sql
final as (
    select step, "offset", offset2, layer, head, entropy, x as value, baseline, z, level
    from scored
    order by head, step
)
select * from final
