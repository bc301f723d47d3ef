with span as (  -- the baseline is [step − 512, step − 64), the watch is [step − 64, step], and one step more for a pair
    select run, greatest(first_step, $step - 512) as low, least(last_step, $step + 2) as high
    from lineage($run)
),
tensor_rows as (
    select t.step, t.tensor, t.rms_t, t.staleness
    from tensors as t join span on span.run = t.run and t.step >= span.low and t.step < span.high
    where t.step >= $step - 512 and t.step < $step + 2  -- a constant range: other row groups are not read
),
tensor_numbers as (
    select tensor, row_number() over (order by tensor) as number from (select distinct tensor from tensor_rows)
),
measured as materialized (  -- a row's number: kind · 10^12 + layer · 10^6 + head, or the tensor's
    select h.step, h.layer * 1000000::bigint + h.head as row, h.attn_logit_max::double as x
    from heads as h join span on span.run = h.run and h.step >= span.low and h.step < span.high
    where h.step >= $step - 512 and h.step < $step + 2
    union all
    select y.step, 1000000000000 + y.layer * 1000000::bigint, y.resid_grad_rms
    from layers as y join span on span.run = y.run and y.step >= span.low and y.step < span.high
    where y.step >= $step - 512 and y.step < $step + 2
    union all
    select t.step, 2000000000000 + n.number, t.rms_t from tensor_rows as t join tensor_numbers as n on n.tensor = t.tensor
    union all
    select t.step, 3000000000000 + n.number, t.staleness
    from tensor_rows as t join tensor_numbers as n on n.tensor = t.tensor
    union all
    select s.step, unnest([4000000000000, 5000000000000]), unnest([s.grad_norm, s.loss])
    from steps as s join span on span.run = s.run and s.step >= span.low and s.step < span.high
    where s.step >= $step - 512 and s.step < $step + 2
),
band as (  -- a row that is often out is judged by its own tail: the deviation that 2 % of its baseline exceed
    select row, tail[2] as middle, coalesce(nullif(1.4826 * mad, 0), deviation) as scale, tail[1] as low, tail[3] as high
    from (
        select row, quantile_cont(x, [0.01, 0.5, 0.99]) as tail, mad(x) as mad, stddev_pop(x) as deviation
        from measured
        where step < $step - 64 and isfinite(x)
        group by row
        having count(*) >= $least
    )
),
watched as materialized (
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
candidates as materialized (  -- most rows never leave their past: the rest is cheap
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
named as (
    select
        *, row // 1000000000000 as sort, row % 1000000000000 // 1000000 as layer_number, row % 1000000 as number
    from alarmed
),
final as (
    select
        a.step, $step - a.step as lead, ['head', 'layer', 'tensor', 'tensor', 'step', 'step'][a.sort + 1] as kind,
        if(a.sort <= 1, a.layer_number, null) as layer, if(a.sort = 0, a.number, null) as head, n.tensor,
        ['attn_logit_max', 'resid_grad_rms', 'rms_t', 'staleness', 'grad_norm', 'loss'][a.sort + 1] as statistic,
        a.value, a.baseline, a.z, a.step <= greatest($step - 64, (select min(low) from span)) as drifting
    from named as a
    left join tensor_numbers as n on n.number = a.number and a.sort in (2, 3)
    order by drifting, lead desc, abs(a.z) desc, kind, layer, head, n.tensor, statistic
    limit $top
)
select * from final
