/*
sentence = "The loss of every sequence around a step: high for some is the data, for all the state."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the step in the middle" }
before = { type = "int", default = 64, meaning = "steps before it" }
after = { type = "int", default = 32, meaning = "steps after it" }
top.type = "int"
top.default = 206
top.meaning = "sequences of one step: the highest half of them, then evenly of the others"

[columns]
step = { unit = "step", meaning = "the step" }
offset = { unit = "steps", meaning = "after the step in the middle" }
slot = "row of the batch"
sequence = "id in the corpus; −1: made by an intervention"
loss = { unit = "nats/token", meaning = "mean over the sequence's targets" }
sequences = "number of sequences in the batch"
apart = "its loss is more than 6 robust σ above the sequences before the step in the middle"
*/
with trajectory as (
    select step, slot, sequence, loss
    from sequences_along($run)
    where step >= $step - $before and step <= $step + $after
),
past as (
    select median(finite(loss)) as middle, robust_sigma(loss) as sigma
    from trajectory
    where step < $step and isfinite(loss)
),
placed as (  -- `beyond`: below 0 the highest half of $top
    select
        *, count(*) over (partition by step) as sequences,
        row_number() over (partition by step order by isfinite(loss) desc, loss desc, slot)
            - 1 - $top // 2 as beyond
    from trajectory
),
spread as (
    select *, greatest(sequences - $top // 2, $top // 2) as others from placed
),
drawn as (
    -- of a large batch the highest, which hold those apart, and evenly of the others: the cloud
    -- keeps its shape
    select *
    from spread
    where beyond < 0 or (beyond + 1) * ($top // 2) // others > beyond * ($top // 2) // others
),
final as (
    select
        step, step - $step as "offset", slot, sequence, loss, sequences,
        coalesce(loss > past.middle + 6 * past.sigma, false) as apart
    from drawn, past
    order by step, slot
)
select * from final
