with span as (
    select run, greatest(first_step, $step - 512) as low, least(last_step, $step + $after + 1) as high
    from lineage($run)
),
trajectory as (
    select t.step, t.tensor, t.rms_t::double as rms_t, t.staleness::double as staleness
    from tensors as t join span on span.run = t.run and t.step >= span.low and t.step < span.high
    where t.step >= $step - 512 and t.step <= $step + $after
),
numbers as (
    select tensor, 2 * row_number() over (order by tensor) as number from (select distinct tensor from trajectory)
),
numbered as (
    select t.*, n.number from trajectory as t join numbers as n on n.tensor = t.tensor
),
measured as (  -- an even row is a tensor's rms_t, the odd one after it its staleness
    select step, number as row, rms_t as x from numbered
    union all
    select step, number + 1, staleness from numbered
),
band as (
    select row, median(x) as middle, coalesce(nullif(1.4826 * mad(x), 0), stddev_pop(x)) as scale
    from measured
    where step < $step - 64 and isfinite(x)
    group by row
    having count(*) >= $least
),
scored as (
    select
        m.*, b.middle as baseline,
        case
            when not isfinite(m.x) then 'infinity'::double
            when b.scale > 0 then (m.x - b.middle) / b.scale
            when m.x = b.middle then 0
            else 'infinity'::double
        end as z
    from measured as m
    join band as b on b.row = m.row
    where m.step >= $step - $before and m.x is not null
),
moved as (  -- first movers on top: two steps in a row beyond 6σ, or the spike's own step; then the farthest
    select row, min(step) filter (where abs(z) >= 6 and (abs(after) >= 6 or step = $step)) as moved_at, max(abs(z)) as largest
    from (select *, lead(z) over (partition by row order by step) as after from scored where step <= $step + 1)
    where step <= $step
    group by row
),
chosen as (
    select *, row_number() over (order by moved_at nulls last, largest desc, row) as place
    from moved qualify place <= $top
),
final as (
    select
        step, (step - $step)::double - 0.5 as "offset", (step - $step)::double + 0.5 as offset2, n.tensor,
        if(scored.row % 2 = 0, 'rms_t', 'staleness') as statistic, chosen.place, x as value, baseline, z,
        (case
            when abs(z) >= 40 then 5 when abs(z) >= 20 then 4 when abs(z) >= 10 then 3 when abs(z) >= 6 then 2
            when abs(z) >= 3 then 1 else 0
        end * sign(z))::integer as level
    from scored join chosen on chosen.row = scored.row join numbers as n on n.number = scored.row - scored.row % 2
    order by place, step
)
select * from final
