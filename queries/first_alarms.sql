with span as (  -- the baseline is [step − 512, step − 64), the watch is [step − 64, step], and one step more for a pair
    select run, greatest(first_step, $step - 512) as low, least(last_step, $step + 2) as high
    from lineage($run)
),
measured as (
    select h.step, {'kind': 'head', 'layer': h.layer, 'head': h.head, 'tensor': '', 'statistic': 'attn_logit_max'} as row,
        h.attn_logit_max::double as x
    from heads as h join span on span.run = h.run and h.step >= span.low and h.step < span.high
    union all
    select t.step, {'kind': 'tensor', 'layer': -1, 'head': -1, 'tensor': t.tensor, 'statistic': 'rms_t'}, t.rms_t
    from tensors as t join span on span.run = t.run and t.step >= span.low and t.step < span.high
    union all
    select t.step, {'kind': 'tensor', 'layer': -1, 'head': -1, 'tensor': t.tensor, 'statistic': 'staleness'}, t.staleness
    from tensors as t join span on span.run = t.run and t.step >= span.low and t.step < span.high
    union all
    select y.step, {'kind': 'layer', 'layer': y.layer, 'head': -1, 'tensor': '', 'statistic': 'resid_grad_rms'},
        y.resid_grad_rms
    from layers as y join span on span.run = y.run and y.step >= span.low and y.step < span.high
    union all
    select s.step, {'kind': 'step', 'layer': -1, 'head': -1, 'tensor': '', 'statistic': 'grad_norm'}, s.grad_norm
    from steps as s join span on span.run = s.run and s.step >= span.low and s.step < span.high
    union all
    select s.step, {'kind': 'step', 'layer': -1, 'head': -1, 'tensor': '', 'statistic': 'loss'}, s.loss
    from steps as s join span on span.run = s.run and s.step >= span.low and s.step < span.high
),
band as (  -- a row that is often out is judged by its own tail: the deviation that 2 % of its baseline exceed
    select
        row, median(x) as middle, coalesce(nullif(1.4826 * mad(x), 0), stddev_pop(x)) as scale,
        quantile_cont(x, 0.01) as low, quantile_cont(x, 0.99) as high
    from measured
    where step < $step - 64 and isfinite(x)
    group by row
    having count(*) >= $least
),
watched as (
    select
        v.row, v.step, v.x, b.middle,
        case
            when not isfinite(v.x) then 'infinity'::double
            when b.scale > 0 then (v.x - b.middle) / b.scale
            when v.x = b.middle then 0
            else 'infinity'::double
        end as z,
        greatest($threshold, coalesce(greatest(b.high - b.middle, b.middle - b.low) / nullif(b.scale, 0), 0)) as limit_z
    from measured as v
    join band as b on b.row = v.row
    where v.step >= $step - 64 and v.x is not null
),
candidates as (  -- most rows never leave their past: the rest is cheap
    select * from watched semi join (select row from watched where abs(z) >= limit_z) as out using (row)
),
paired as (  -- one step beyond the threshold is common among thousands of rows; two in a row are not
    select
        *, abs(z) >= limit_z and abs(lead(z) over by_step) >= limit_z and sign(z) = sign(lead(z) over by_step) as pair
    from candidates
    window by_step as (partition by row order by step)
),
gaps as (  -- what came back, and stayed back for more than 8 steps before the spike, is not part of it
    select row, max(step) filter (where following - step > 8) as over_at
    from (
        select row, step, coalesce(lead(step) over (partition by row order by step), $step) as following
        from candidates
        where step <= $step and abs(z) >= 0.5 * limit_z
    )
    group by row
),
alarmed as (  -- the spike's own step counts alone: what follows it may be over at once
    select
        p.row, min(p.step) as step, arg_min(p.x, p.step) as value, any_value(p.middle) as baseline,
        arg_min(p.z, p.step) as z
    from paired as p
    left join gaps as g on g.row = p.row
    where p.step <= $step and p.step > coalesce(g.over_at, -1)
        and (p.pair or (p.step = $step and abs(p.z) >= p.limit_z))
    group by p.row
),
final as (
    select
        step, $step - step as lead, row.kind as kind, nullif(row.layer, -1) as layer, nullif(row.head, -1) as head,
        nullif(row.tensor, '') as tensor, row.statistic as statistic, value, baseline, z,
        step <= greatest($step - 64, (select min(low) from span)) as drifting
    from alarmed
    order by drifting, lead desc, abs(z) desc, kind, layer, head, tensor, statistic
    limit $top
)
select * from final
