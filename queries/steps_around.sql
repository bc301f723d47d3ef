with final as (
    select s.run, s.step, s.step - $step as "offset", s.loss, s.grad_norm, s.clip_scale, s.lr, s.update
    from steps as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
    where s.step >= $step - $before and s.step <= $step + $after
    order by s.step
)
select * from final
