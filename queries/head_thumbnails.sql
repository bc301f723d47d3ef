/*
sentence = "The largest attention logit of every head around a step, as small curves on a grid."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the step" }
before = { type = "int", default = 64, meaning = "steps before it" }
after = { type = "int", default = 32, meaning = "steps after it" }
every = { type = "int", default = 1, low = 1, meaning = "steps per point; the largest counts" }

[columns]
layer = "decoder block"
head = "query head"
step = { unit = "step", meaning = "first step of the point" }
attn_logit_max = "largest attention logit of the point"
across = "place on the grid: head + 0 … 1"
down = "place on the grid: layer + 0 … 1, larger is lower"
*/
with binned as (
    select
        layer, head, (step - ($step - $before)) // $every as bin,
        max(attn_logit_max::double) filter (isfinite(attn_logit_max)) as x
    from heads_along($run)
    where step >= $step - $before and step <= $step + $after
    group by layer, head, bin
),
ranged as (  -- a head that hardly moves is drawn so: its range is at least a tenth of its median
    select
        layer, head, median(x) as middle, min(x) as low,
        greatest(max(x), min(x) + 0.1 * abs(median(x)), min(x) + 1e-6) as high
    from binned
    where x is not null
    group by layer, head
),
final as (
    select
        b.layer, b.head, $step - $before + b.bin * $every as step, b.x as attn_logit_max,
        b.head + 0.06 + 0.88 * (b.bin + 0.5) * $every / ($before + $after + 1) as across,
        b.layer + 0.94 - 0.5 * (b.x - r.low) / (r.high - r.low) as down
    from binned as b
    join ranged as r on r.layer = b.layer and r.head = b.head
    where b.x is not null
    order by b.layer, b.head, b.bin
)
select * from final
