-- The band that a metric is expected in at $step, as `forensics.detect.band` defines it. Reads
-- `before` (step, x): what counts of the steps before it, all finite; gives `band` (centre, scale),
-- one row, NULL where fewer than 17 values came before.
leveled as (
    select
        step, x,
        least(median(x) over latest_128, median(x) over latest_9) as level,
        count(x) over latest_9 as counted,
        row_number() over (order by step desc) as back
    from (
        (select step, x from before order by step desc limit 256)
        union all
        select $step, null
    )
    window
        latest_128 as (order by step rows between 128 preceding and 1 preceding),
        latest_9 as (order by step rows between 9 preceding and 1 preceding)
),
residuals as (
    select
        count(*) as counted, median(x - level) as ahead,
        greatest(
            robust_sigma(x - level), 1e-6 * abs((select level from leveled where back = 1)), 1e-12
        ) as scale
    from leveled
    where back between 2 and 129 and counted = 9
),
band as (
    select
        if(r.counted >= 8, l.level + least(r.ahead, 0.25 * r.scale), null) as centre,
        if(r.counted >= 8, r.scale, null) as scale
    from leveled as l cross join residuals as r
    where l.back = 1
),
