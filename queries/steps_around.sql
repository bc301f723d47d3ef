/*
sentence = "Loss and gradient norm around a step."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the step in the middle" }
before = { type = "int", default = 64, meaning = "steps before it" }
after = { type = "int", default = 32, meaning = "steps after it" }

[columns]
run = "the run or an ancestor: whose table the step stands in"
step = { unit = "step", meaning = "the step" }
offset = { unit = "steps", meaning = "after the step in the middle" }
loss = { unit = "nats/token", meaning = "loss of the batch" }
grad_norm = "gradient norm before clipping"
clip_scale = "factor that clipping multiplied the gradient by; 1: it did not clip"
lr = "learning rate"
update = "what was done with the gradient: apply | hold | zero | none | skipped"
*/
with final as (
    select run, step, step - $step as "offset", loss, grad_norm, clip_scale, lr, update
    from steps_along($run)
    where step >= $step - $before and step <= $step + $after
    order by step
)
select * from final
