/*
sentence = "What the log of a run made elsewhere holds beside loss, learning rate and gradient norm."

[parameters]
run = { type = "run", meaning = "the run" }

[columns]
name = "as its log names it"
values = { unit = "count", meaning = "steps that have one" }
nonfinite = { unit = "count", meaning = "of them, NaN and infinite ones" }
first_step = { unit = "step", meaning = "the first of these steps, as ours count" }
last_step = { unit = "step", meaning = "the last of them" }
smallest = "smallest finite value"
largest = "largest finite value"
last_value = "value at the last of these steps"
*/
with final as (
    select
        name, count(*) as values, nonfinite(value) as nonfinite, min(step) as first_step,
        max(step) as last_step, min(finite(value)) as smallest, max(finite(value)) as largest,
        arg_max(value, step) as last_value
    from metrics
    where run = $run
    group by name
    order by name
)
select * from final
