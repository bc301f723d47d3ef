with trajectory as (
    select s.step, s.loss, s.grad_norm, s.update
    from steps as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
    where s.loss is not null
),
windowed as (
    select
        *,
        count(*) over earlier as n,
        avg(loss) filter (where isfinite(loss)) over earlier as loss_mean,
        stddev_samp(loss) filter (where isfinite(loss)) over earlier as loss_deviation,
        avg(grad_norm) filter (where isfinite(grad_norm)) over earlier as grad_norm_mean,
        stddev_samp(grad_norm) filter (where isfinite(grad_norm)) over earlier as grad_norm_deviation
    from trajectory
    window earlier as (order by step rows between $window preceding and 1 preceding)
),
judged as (
    select
        *,
        (loss - loss_mean) / nullif(loss_deviation, 0) as loss_sigma,
        (grad_norm - grad_norm_mean) / nullif(grad_norm_deviation, 0) as grad_norm_sigma,
        loss - loss_mean > $sigma * loss_deviation or not isfinite(loss) as by_loss,
        grad_norm - grad_norm_mean > $sigma * grad_norm_deviation or not isfinite(grad_norm) as by_grad_norm
    from windowed
    where n >= $least
),
final as (
    select
        step, loss, loss_sigma, coalesce(by_loss, false) as by_loss, grad_norm, grad_norm_sigma,
        coalesce(by_grad_norm, false) as by_grad_norm, n, update
    from judged
    where by_loss or by_grad_norm
    order by step
)
select * from final
