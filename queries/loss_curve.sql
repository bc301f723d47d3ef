with trajectory as (
    select s.run, s.step, s.loss, s.held_out_loss, s.grad_norm, s.lr
    from steps as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
),
smoothed as (
    select
        *,
        avg(loss) filter (where isfinite(loss)) over recent as smooth_loss,
        median(grad_norm) over recent as median_grad_norm
    from trajectory
    window recent as (order by step range between $smooth - 1 preceding and current row)
),
final as (
    select run, step, loss, smooth_loss, held_out_loss, grad_norm, median_grad_norm, lr
    from smoothed
    where step >= $first and step < $last
    order by step
)
select * from final
