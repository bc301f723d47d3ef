/*
sentence = "Every head at one step, its largest attention logit against the head's own past."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the step" }
least = { type = "int", default = 16, low = 2, meaning = "steps that a baseline needs" }

[columns]
layer = "decoder block"
head = "query head"
attn_logit_max = "largest attention logit of the batch"
baseline = "median of the largest logit over the steps [-512, -64) before the step"
z = { unit = "σ", meaning = "robust z of the logit against those steps; NULL: too few of them" }
level = "how many of 3, 6, 10, 20, 40 |z| reaches, with the sign of z"
attn_entropy_norm = { unit = "share", meaning = "mean entropy over log(number of keys)" }
baseline_entropy = { unit = "share", meaning = "median of that over the baseline's steps" }
sink_mass = { unit = "share", meaning = "mean weight on the first key" }
q_norm_max = "max ‖q‖"
k_norm_max = "max ‖k‖"
*/
with measured as (
    select
        step, layer, head, attn_logit_max::double as x, attn_entropy_norm::double as entropy,
        sink_mass, q_norm_max, k_norm_max
    from heads_along($run)
    where step >= $step - 512 and step <= $step and (step < $step - 64 or step = $step)
),
past as (
    select
        layer, head, count(*) as rows, median(x) as middle, robust_scale(x) as scale,
        median(entropy) as entropy
    from measured
    where step < $step - 64 and isfinite(x)
    group by layer, head
),
final as (
    select
        m.layer, m.head, m.x as attn_logit_max, p.middle as baseline,
        case when p.rows >= $least then robust_z(m.x, p.middle, p.scale) end as z,
        z_level(z) as level, m.entropy as attn_entropy_norm, p.entropy as baseline_entropy,
        m.sink_mass, m.q_norm_max, m.k_norm_max
    from measured as m
    left join past as p on p.layer = m.layer and p.head = m.head
    where m.step = $step
    order by m.layer, m.head
)
select * from final
