with span as (  -- the baseline is [step − 512, step − 64), the watch is [step − 64, step]
    select run, greatest(first_step, $step - 512) as low, least(last_step, $step + 1) as high
    from lineage($run)
),
head_values as (
    unpivot (
        select h.step, 'layer ' || h.layer || ' head ' || h.head as place,
            h.attn_logit_max, h.attn_logit_spread, h.attn_entropy_mean, h.q_norm_max, h.k_norm_max
        from heads as h join span on span.run = h.run and h.step >= span.low and h.step < span.high
    ) on columns(* exclude (step, place)) into name statistic value x
),
tensor_values as (
    unpivot (
        select t.step, t.tensor as place, t.grad_rms, t.update_ratio, t.rms_t, t.staleness
        from tensors as t join span on span.run = t.run and t.step >= span.low and t.step < span.high
    ) on columns(* exclude (step, place)) into name statistic value x
),
layer_values as (
    unpivot (
        select y.step, 'layer ' || y.layer as place, y.resid_rms_out, y.resid_grad_rms, y.attn_out_rms, y.mlp_out_rms
        from layers as y join span on span.run = y.run and y.step >= span.low and y.step < span.high
    ) on columns(* exclude (step, place)) into name statistic value x
),
step_values as (
    unpivot (
        select s.step, 'whole model' as place, s.loss, s.grad_norm, s.logit_max, s.logz_max, s.output_entropy
        from steps as s join span on span.run = s.run and s.step >= span.low and s.step < span.high
    ) on columns(* exclude (step, place)) into name statistic value x
),
measured as (
    select 'head' as kind, place, statistic, step, x::double as x from head_values
    union all select 'tensor', place, statistic, step, x::double from tensor_values
    union all select 'layer', place, statistic, step, x::double from layer_values
    union all select 'step', place, statistic, step, x::double from step_values
),
band as (  -- where more than half of the baseline is one value, MAD is 0: then the standard deviation
    select
        kind, place, statistic, count(*) as n, median(x) as middle,
        coalesce(nullif(1.4826 * mad(x), 0), stddev_pop(x)) as scale
    from measured
    where step < $step - 64 and isfinite(x)
    group by kind, place, statistic
    having n >= $least
),
watched as (
    select
        v.kind, v.place, v.statistic, v.step, v.x, b.middle, b.n,
        case
            when not isfinite(v.x) then 'infinity'::double
            when b.scale > 0 then (v.x - b.middle) / b.scale
            when v.x = b.middle then 0
            else 'infinity'::double
        end as z
    from measured as v
    join band as b on b.kind = v.kind and b.place = v.place and b.statistic = v.statistic
    where v.step >= $step - 64 and v.step <= $step
),
moved as (
    select
        kind, place, statistic, min(step) as moved_at, arg_min(x, step) as value, any_value(middle) as baseline,
        arg_min(z, step) as z, max(abs(z)) as largest_z, count(*) as steps_outside, any_value(n) as n
    from watched
    where abs(z) > $threshold
    group by kind, place, statistic
),
final as (
    select
        moved_at, $step - moved_at as lead, kind, place, statistic, value, baseline, z, largest_z,
        steps_outside, n as baseline_steps
    from moved
    order by moved_at, largest_z desc, kind, place, statistic
    limit $top
)
select * from final
