with span as (
    select run, greatest(first_step, $step - $before) as low, least(last_step, $step + $after + 1) as high
    from lineage($run)
),
binned as (
    select
        h.layer, h.head, (h.step - ($step - $before)) // $every as bin,
        max(h.attn_logit_max::double) filter (isfinite(h.attn_logit_max)) as x
    from heads as h join span on span.run = h.run and h.step >= span.low and h.step < span.high
    where h.step >= $step - $before and h.step <= $step + $after
    group by h.layer, h.head, bin
),
ranged as (  -- a head that hardly moves is drawn as one: its range is at least a tenth of its median
    select
        layer, head, median(x) as middle, min(x) as low, greatest(max(x), min(x) + 0.1 * abs(median(x)), min(x) + 1e-6) as high
    from binned where x is not null
    group by layer, head
),
final as (
    select
        b.layer, b.head, $step - $before + b.bin * $every as step, b.x as attn_logit_max,
        b.head + 0.06 + 0.88 * (b.bin + 0.5) * $every / ($before + $after + 1) as across,
        b.layer + 0.94 - 0.5 * (b.x - r.low) / (r.high - r.low) as down
    from binned as b join ranged as r on r.layer = b.layer and r.head = b.head
    where b.x is not null
    order by b.layer, b.head, b.bin
)
select * from final
