with measured as materialized (  -- read once, used twice
    select step, arm, layer, tensor, l2
    from divergence
    where run = $run and (ends_with(tensor, '.*') or (layer is null and tensor <> ''))
),
nulls as (
    select step, tensor, median(l2) as placebo_l2, count(*) as placebos
    from measured where arm like 'placebo-%' group by step, tensor
),
ratios as (
    select m.step, m.layer, m.tensor, m.l2, n.placebo_l2,
        case when n.placebo_l2 > 0 then m.l2 / n.placebo_l2 when m.l2 > 0 then 'infinity'::double end as ratio
    from measured as m join nulls as n on n.step = m.step and n.tensor = m.tensor
    where m.arm = 'fork'
),
span as (
    select min(step) as first, greatest(ceil((max(step) - min(step) + 1) * count(distinct tensor) / $most::double), 1) as width
    from ratios
),
cells as (
    select
        max(r.step) as step, min(r.step) - 1 as begin, r.layer, r.tensor, max(r.ratio) as ratio,
        arg_max(r.l2, r.ratio) as l2, arg_max(r.placebo_l2, r.ratio) as placebo_l2
    from ratios as r, span
    group by r.layer, r.tensor, floor((r.step - span.first) / span.width)
),
final as (
    select
        begin, step, layer, tensor, case when layer is null then tensor else 'L' || layer end as row,
        l2, placebo_l2, ratio, case when ratio >= 20 then 4 when ratio >= 10 then 3 when ratio >= 5 then 2 when ratio >= 2 then 1 else 0 end as level
    from cells
    order by layer nulls first, tensor, step
)
select * from final
