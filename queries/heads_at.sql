with span as (
    select run, greatest(first_step, $step - 512) as low, least(last_step, $step + 1) as high
    from lineage($run)
),
measured as (
    select
        h.step, h.layer, h.head, h.attn_logit_max::double as x, h.attn_entropy_norm::double as e,
        h.sink_mass, h.q_norm_max, h.k_norm_max
    from heads as h join span on span.run = h.run and h.step >= span.low and h.step < span.high
    where h.step >= $step - 512 and h.step <= $step and (h.step < $step - 64 or h.step = $step)
),
band as (
    select
        layer, head, count(*) as rows,
        median(x) as middle, coalesce(nullif(1.4826 * mad(x), 0), stddev_pop(x)) as scale, median(e) as entropy
    from measured
    where step < $step - 64 and isfinite(x)
    group by layer, head
),
final as (
    select
        m.layer, m.head, m.x as attn_logit_max, b.middle as baseline,
        case
            when coalesce(b.rows, 0) < $least then null
            when not isfinite(m.x) then 'infinity'::double
            when b.scale > 0 then (m.x - b.middle) / b.scale
            when m.x = b.middle then 0
            else 'infinity'::double
        end as z,
        (case
            when abs(z) >= 40 then 5 when abs(z) >= 20 then 4 when abs(z) >= 10 then 3 when abs(z) >= 6 then 2
            when abs(z) >= 3 then 1 else 0
        end * sign(z))::integer as level,
        m.e as attn_entropy_norm, b.entropy as baseline_entropy, m.sink_mass, m.q_norm_max, m.k_norm_max
    from measured as m
    left join band as b on b.layer = m.layer and b.head = m.head
    where m.step = $step
    order by m.layer, m.head
)
select * from final
