/*
sentence = "The loss of a run and of the ancestors it continues, step by step and smoothed."

[parameters]
run = { type = "run", meaning = "the run" }
first = { type = "int", default = 0, meaning = "first step" }
last = { type = "int", default = 9223372036854775807, meaning = "first step that is left out" }
smooth = { type = "int", default = 20, meaning = "steps that the mean and the median reach back" }

[columns]
run = "the run or an ancestor: whose table the step stands in"
step = { unit = "step", meaning = "the step" }
loss = { unit = "nats/token", meaning = "loss of the batch; NULL where nothing was computed" }
smooth_loss = { unit = "nats/token", meaning = "mean of the last `smooth` steps' finite losses" }
held_out_loss = { unit = "nats/token", meaning = "loss on the held-out sequences, where measured" }
grad_norm = "gradient norm before clipping"
median_grad_norm = "median of the last `smooth` steps' finite gradient norms"
nonfinite = { unit = "steps", meaning = "of those whose loss or gradient norm is not finite" }
lr = "learning rate"
*/
with smoothed as (
    select
        *,
        avg(loss) filter (where isfinite(loss)) over recent as smooth_loss,
        median(grad_norm) filter (where isfinite(grad_norm)) over recent as median_grad_norm,
        count(*) filter (where not isfinite(loss) or not isfinite(grad_norm)) over recent
        as nonfinite
    from steps_along($run)
    window recent as (order by step range between $smooth - 1 preceding and current row)
),
final as (
    select run, step, loss, smooth_loss, held_out_loss, grad_norm, median_grad_norm,
        nonfinite, lr
    from smoothed
    where step >= $first and step < $last
    order by step
)
select * from final
