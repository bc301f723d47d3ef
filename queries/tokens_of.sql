with final as (
    select t.position, t.token, t.loss::double as loss, t.weight
    from tokens as t
    join lineage($run) as l on l.run = t.run and t.step >= l.first_step and t.step < l.last_step
    where t.step = $step and t.slot = $slot
    order by t.position
)
select * from final
