/*
sentence = "How far each layer of a fork is from the control, over the placebos' median."

[parameters]
run = { type = "run", meaning = "the fork" }
most = { type = "int", default = 20000, low = 1, meaning = "cells, each its steps' largest ratio" }

[columns]
begin = { unit = "step", meaning = "the state before the cell's first one" }
step = { unit = "step", meaning = "the cell's last state, after this many updates" }
layer = "decoder block; NULL: the tensor is in none"
tensor = "`layers.<i>.*`, or a tensor outside of the layers"
row = "label of the row: L<i>, or the tensor's name"
l2 = "‖θ_fork − θ_control‖₂ over the layer or tensor"
placebo_l2 = "median of the same over the placebos"
ratio = "l2 over placebo_l2; inf where no placebo has moved"
level = "how many of 2, 5, 10, 20 the ratio reaches"
*/
with measured as materialized (  -- read once, used twice
    select step, arm, layer, tensor, l2
    from divergence
    where run = $run and (ends_with(tensor, '.*') or (layer is null and tensor <> ''))
),
placebos as (
    select step, tensor, median(l2) as placebo_l2
    from measured
    where arm like 'placebo-%'
    group by step, tensor
),
ratios as (
    select
        m.step, m.layer, m.tensor, m.l2, p.placebo_l2,
        case
            when p.placebo_l2 > 0 then m.l2 / p.placebo_l2
            when m.l2 > 0 then 'infinity'::double
        end as ratio
    from measured as m
    join placebos as p on p.step = m.step and p.tensor = m.tensor
    where m.arm = 'fork'
),
stretches as (
    select
        min(step) as first,
        greatest(
            ceil((max(step) - min(step) + 1) * count(distinct tensor) / $most::double), 1
        ) as width
    from ratios
),
cells as (
    select
        max(r.step) as step, min(r.step) - 1 as begin, r.layer, r.tensor, max(r.ratio) as ratio,
        arg_max(r.l2, r.ratio) as l2, arg_max(r.placebo_l2, r.ratio) as placebo_l2
    from ratios as r, stretches
    group by r.layer, r.tensor, floor((r.step - stretches.first) / stretches.width)
),
final as (
    select
        begin, step, layer, tensor,
        case when layer is null then tensor else 'L' || layer end as row,
        l2, placebo_l2, ratio,
        case
            when ratio >= 20 then 4 when ratio >= 10 then 3 when ratio >= 5 then 2
            when ratio >= 2 then 1 else 0
        end as level
    from cells
    order by layer nulls first, tensor, step
)
select * from final
