/*
sentence = "The largest attention logit of every head over time, and how it grew."

[parameters]
run = { type = "run", meaning = "the run" }
first = { type = "int", default = 0, meaning = "first step" }
last = { type = "int", default = 9223372036854775807, meaning = "first step that is left out" }
every = { type = "int", default = 50, low = 1, meaning = "steps per row" }

[columns]
layer = "decoder block"
head = "query head"
step = { unit = "step", meaning = "first step of the bin" }
attn_logit_max = "largest finite attention logit in the bin"
nonfinite = { unit = "steps", meaning = "of the bin whose largest logit is NaN or infinite" }
at_step = { unit = "step", meaning = "where it was largest" }
growth = "attn_logit_max over that of the first bin"
attn_entropy_mean = { unit = "nats", meaning = "smallest mean attention entropy in the bin" }
q_norm_max = "largest max ‖q‖ in the bin"
k_norm_max = "largest max ‖k‖ in the bin"
*/
with binned as (
    select
        layer, head, step // $every * $every as bin,
        max(finite(attn_logit_max)) as attn_logit_max,
        nonfinite(attn_logit_max) as nonfinite,
        arg_max(step, finite(attn_logit_max)) as at_step,
        min(finite(attn_entropy_mean)) as attn_entropy_mean,
        max(finite(q_norm_max)) as q_norm_max,
        max(finite(k_norm_max)) as k_norm_max
    from heads_along($run)
    where step >= $first and step < $last
    group by layer, head, bin
),
final as (
    select
        layer, head, bin as step, attn_logit_max, nonfinite, at_step,
        attn_logit_max / nullif(first_value(attn_logit_max) over head_by_step, 0) as growth,
        attn_entropy_mean, q_norm_max, k_norm_max
    from binned
    window head_by_step as (partition by layer, head order by bin)
    order by layer, head, step
)
select * from final
