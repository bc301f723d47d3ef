/*
sentence = "The loss of every target of one sequence, where it was recorded (dense windows)."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the batch" }
slot = { type = "int", meaning = "row of the batch" }

[columns]
position = "place of the target in the sequence, from 0"
token = "the target's id"
loss = { unit = "nats", meaning = "cross-entropy of the target" }
weight = "its weight in the loss"
*/
with final as (
    select position, token, loss::double as loss, weight
    from tokens_along($run)
    where step = $step and slot = $slot
    order by position
)
select * from final
