with trajectory as (
    select s.step, s.loss
    from steps as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
),
final as (
    select
        step // $every * $every as step, step // $every * $every + $every as step2,
        min(loss) filter (where isfinite(loss)) as low,
        max(loss) filter (where isfinite(loss)) as high,
        avg(loss) filter (where isfinite(loss)) as mean
    from trajectory
    group by all
    order by 1
)
select * from final
