with trajectory as (
    select h.*, h.step // $every * $every as bin
    from heads as h
    join lineage($run) as l on l.run = h.run and h.step >= l.first_step and h.step < l.last_step
    where h.step >= $first and h.step < $last
),
binned as (
    select
        layer, head, bin,
        max(attn_logit_max) as attn_logit_max,
        arg_max(step, attn_logit_max) as at_step,
        min(attn_entropy_mean) as attn_entropy_mean,
        max(q_norm_max) as q_norm_max,
        max(k_norm_max) as k_norm_max
    from trajectory group by layer, head, bin
),
final as (
    select
        layer, head, bin as step, attn_logit_max, at_step,
        attn_logit_max / nullif(first_value(attn_logit_max) over head_by_step, 0) as growth,
        attn_entropy_mean, q_norm_max, k_norm_max
    from binned
    window head_by_step as (partition by layer, head order by bin)
    order by layer, head, step
)
select * from final
