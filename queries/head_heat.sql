with span as (
    select run, greatest(first_step, $step - 512) as low, least(last_step, $step + $after + 1) as high
    from lineage($run)
),
measured as (
    select h.step, h.head as row, h.layer, h.head, h.attn_logit_max::double as x, h.attn_entropy_mean as entropy
    from heads as h join span on span.run = h.run and h.step >= span.low and h.step < span.high
    where h.layer = $layer and h.step >= $step - 512 and h.step <= $step + $after
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
final as (
    select
        step, (step - $step)::double - 0.5 as "offset", (step - $step)::double + 0.5 as offset2, layer, head, entropy, x as value, baseline, z,
        (case
            when abs(z) >= 40 then 5 when abs(z) >= 20 then 4 when abs(z) >= 10 then 3 when abs(z) >= 6 then 2
            when abs(z) >= 3 then 1 else 0
        end * sign(z))::integer as level
    from scored
    order by head, step
)
select * from final
