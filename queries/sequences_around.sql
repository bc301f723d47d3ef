with trajectory as (
    select s.step, s.slot, s.sequence, s.loss
    from sequences as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
    where s.step >= $step - $before and s.step <= $step + $after
),
past as (
    select median(loss) as middle, 1.4826 * mad(loss) as scale
    from trajectory where step < $step and isfinite(loss)
),
final as (
    select
        step, step - $step as "offset", slot, sequence, loss,
        coalesce(loss > past.middle + 6 * past.scale, false) as apart
    from trajectory, past
    order by step, slot
)
select * from final
