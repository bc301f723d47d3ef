/*
sentence = "The loss of a fork and of its parent, each on its own batches."

[parameters]
run = { type = "run", meaning = "the fork" }
parent = { type = "run", meaning = "its parent" }
first = { type = "int", meaning = "first step" }
last = { type = "int", meaning = "first step that is left out" }
most = { type = "int", default = 1000, low = 1, meaning = "rows per run, each a stretch's highest" }

[columns]
step = { unit = "step", meaning = "the step" }
arm = "fork | parent"
loss = { unit = "nats/token", meaning = "loss of the batch" }
*/
with fork as (
    select 'fork' as arm, step, loss
    from steps
    where run = $run and step >= $first and step < $last
),
parent as (
    select 'parent' as arm, step, loss
    from steps_along($parent)
    where step >= $first and step < $last
),
measured as (
    select * from fork
    union all
    select * from parent
),
final as (  -- the highest of each stretch, so that no spike disappears
    select arg_max(step, loss) as step, arm, max(loss) as loss
    from measured
    where loss is not null
    group by arm, floor((step - $first) / greatest(($last - $first) / $most, 1))
    order by arm, step
)
select * from final
