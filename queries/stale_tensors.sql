with span as (
    select run, greatest(first_step, $step - $within) as low, least(last_step, $step + 1) as high
    from lineage($run)
),
watched as (
    select t.* from tensors as t join span on span.run = t.run and t.step >= span.low and t.step < span.high
),
final as (
    select
        tensor,
        max(rms_t) as rms_t,
        arg_max(step, rms_t) as rms_t_at,
        $step - arg_max(step, rms_t) as lead,
        max(rms_t) >= 2.3 as alarm,
        max(staleness) as staleness,
        arg_max(step, staleness) as staleness_at,
        max(gss_share) as gss_share,
        arg_max(unseen_share, step) as unseen_share,
        arg_max(grad_norm, step) as grad_norm
    from watched
    group by tensor
    order by rms_t desc nulls last, staleness desc nulls last, tensor
    limit $top
)
select * from final
