with measured as (
    select step, arm, l2, logit_kl, loss_gap, unseen_gap
    from divergence
    where run = $run and tensor = ''
),
span as (select min(step) as first, greatest((max(step) - min(step) + 1) / $most, 1) as width from measured),
final as (  -- over a long window one row per stretch: its last measurement
    select
        max(m.step) as step, m.arm, regexp_replace(m.arm, '-[0-9]+$', '') as kind,
        arg_max(m.l2, m.step) as l2, arg_max(m.logit_kl, m.step) as logit_kl,
        arg_max(m.loss_gap, m.step) as loss_gap, arg_max(m.unseen_gap, m.step) as unseen_gap
    from measured as m, span
    group by m.arm, floor((m.step - span.first) / span.width)
    order by m.arm, step
)
select * from final
