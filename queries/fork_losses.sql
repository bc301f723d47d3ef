with own as (
    select 'fork' as arm, step, loss from steps where run = $run and step >= $first and step < $last
),
parent as (
    select 'parent' as arm, s.step, s.loss
    from steps as s
    join lineage($parent) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
    where s.step >= $first and s.step < $last
),
measured as (select * from own union all select * from parent),
final as (  -- the highest of each stretch, so that no spike disappears
    select arg_max(step, loss) as step, arm, max(loss) as loss
    from measured
    where loss is not null
    group by arm, floor((step - $first) / greatest(($last - $first) / $most, 1))
    order by arm, step
)
select * from final
