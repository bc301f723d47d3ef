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
placed as (  -- `beyond`: below 0 the highest half of $top
    select
        *, count(*) over (partition by step) as sequences,
        row_number() over (partition by step order by isfinite(loss) desc, loss desc, slot) - 1 - $top // 2 as beyond
    from trajectory
),
spread as (
    select *, greatest(sequences - $top // 2, $top // 2) as rest from placed
),
kept as (  -- of a large batch the highest, which hold those apart, and evenly of the others: the cloud keeps its shape
    select * from spread
    where beyond < 0 or (beyond + 1) * ($top // 2) // rest > beyond * ($top // 2) // rest
),
final as (
    select
        step, step - $step as "offset", slot, sequence, loss, sequences,
        coalesce(loss > past.middle + 6 * past.scale, false) as apart
    from kept, past
    order by step, slot
)
select * from final
