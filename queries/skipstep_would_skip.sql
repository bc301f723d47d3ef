/*
sentence = "What SkipStep would have skipped: loss or gradient norm far above the latest mean."

[parameters]
run = { type = "run", meaning = "the run" }
sigma = { type = "float", default = 6.0, meaning = "standard deviations above the mean" }
window = { type = "int", default = 128, low = 2, meaning = "previous steps that are looked at" }
least.type = "int"
least.default = 0
least.low = 0
least.most = "window"
least.meaning = "previous steps that it needs to judge; 0: half of the window"

[columns]
step = { unit = "step", meaning = "the step" }
loss = { unit = "nats/token", meaning = "loss of the batch" }
loss_sigma = { unit = "σ", meaning = "the loss above the mean; NULL: the window never moved" }
by_loss = "the loss alone would have it skipped; a NaN or inf always does"
grad_norm = "gradient norm before clipping"
grad_norm_sigma = { unit = "σ", meaning = "the gradient norm above the mean" }
by_grad_norm = "the gradient norm alone would have it skipped"
n = { unit = "steps", meaning = "in the window" }
update = "what was done with the gradient in fact: apply | hold | zero | none | skipped"
*/
with trajectory as (
    select step, loss, grad_norm, update from steps_along($run) where loss is not null
),
windowed as (
    select
        *,
        count(*) over earlier as n,
        avg(loss) filter (where isfinite(loss)) over earlier as loss_mean,
        stddev_samp(loss) filter (where isfinite(loss)) over earlier as loss_deviation,
        avg(grad_norm) filter (where isfinite(grad_norm)) over earlier as grad_norm_mean,
        stddev_samp(grad_norm) filter (where isfinite(grad_norm)) over earlier
            as grad_norm_deviation
    from trajectory
    window earlier as (order by step rows between $window preceding and 1 preceding)
),
judged as (
    select
        *,
        (loss - loss_mean) / nullif(loss_deviation, 0) as loss_sigma,
        (grad_norm - grad_norm_mean) / nullif(grad_norm_deviation, 0) as grad_norm_sigma,
        loss - loss_mean > $sigma * loss_deviation or not isfinite(loss) as by_loss,
        grad_norm - grad_norm_mean > $sigma * grad_norm_deviation or not isfinite(grad_norm)
            as by_grad_norm
    from windowed
    where n >= greatest(if($least = 0, $window // 2, $least), 2)
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
