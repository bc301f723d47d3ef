with span as (  -- the baseline is [step − 512, step − 64), the watch is [step − 64, step], and one step more for a pair
    select run, greatest(first_step, $step - 512) as low, least(last_step, $step + 2) as high
    from lineage($run)
),
measured as (
    select h.step, 'head' as kind, h.layer, h.head, null::varchar as tensor, 'attn_logit_max' as statistic,
        h.attn_logit_max::double as x
    from heads as h join span on span.run = h.run and h.step >= span.low and h.step < span.high
    union all
    select t.step, 'tensor', null, null, t.tensor, 'rms_t', t.rms_t
    from tensors as t join span on span.run = t.run and t.step >= span.low and t.step < span.high
    union all
    select t.step, 'tensor', null, null, t.tensor, 'staleness', t.staleness
    from tensors as t join span on span.run = t.run and t.step >= span.low and t.step < span.high
    union all
    select y.step, 'layer', y.layer, null, null, 'resid_grad_rms', y.resid_grad_rms
    from layers as y join span on span.run = y.run and y.step >= span.low and y.step < span.high
    union all
    select s.step, 'step', null, null, null, 'grad_norm', s.grad_norm
    from steps as s join span on span.run = s.run and s.step >= span.low and s.step < span.high
    union all
    select s.step, 'step', null, null, null, 'loss', s.loss
    from steps as s join span on span.run = s.run and s.step >= span.low and s.step < span.high
),
band as (
    select
        kind, layer, head, tensor, statistic, count(*) as n, median(x) as middle,
        coalesce(nullif(1.4826 * mad(x), 0), stddev_pop(x)) as scale
    from measured
    where step < $step - 64 and isfinite(x)
    group by all
    having n >= $least
),
watched as (
    select
        v.*, b.middle,
        case
            when not isfinite(v.x) then 'infinity'::double
            when b.scale > 0 then (v.x - b.middle) / b.scale
            when v.x = b.middle then 0
            else 'infinity'::double
        end as z
    from measured as v
    join band as b
        on b.kind = v.kind and b.statistic = v.statistic and b.layer is not distinct from v.layer
        and b.head is not distinct from v.head and b.tensor is not distinct from v.tensor
    where v.step >= $step - 64 and v.x is not null
),
paired as (  -- one step beyond the threshold is common among thousands of rows; two in a row are not
    select
        *,
        abs(z) >= $threshold and abs(lead(z) over by_step) >= $threshold
            and sign(z) = sign(lead(z) over by_step) as pair
    from watched
    window by_step as (partition by kind, layer, head, tensor, statistic order by step)
),
alarmed as (  -- the spike's own step counts alone: what follows it may be over at once
    select
        kind, layer, head, tensor, statistic, min(step) as step, arg_min(x, step) as value,
        any_value(middle) as baseline, arg_min(z, step) as z
    from paired
    where step <= $step and (pair or (step = $step and abs(z) >= $threshold))
    group by all
),
final as (
    select
        step, $step - step as lead, kind, layer, head, tensor, statistic, value, baseline, z,
        step <= greatest($step - 64, (select min(low) from span)) as drifting
    from alarmed
    order by drifting, lead desc, abs(z) desc, kind, layer, head, tensor, statistic
    limit $top
)
select * from final
