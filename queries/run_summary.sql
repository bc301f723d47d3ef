/*
sentence = "What happened in each run: how far it came, its losses, spikes and checkpoints."

[parameters]
run = { type = "text", default = "", meaning = "only this run; empty: all of them" }

[columns]
run = "the run"
parent = "the run it is a fork of"
parent_step = { unit = "step", meaning = "the parent's state it starts from" }
status = "running | finished | interrupted | failed"
recipe = "name of its recipe"
parameters = { unit = "parameters", meaning = "number of trained numbers" }
recorded = { unit = "steps", meaning = "in its own tables" }
reached = { unit = "step", meaning = "the state it came to" }
steps = { unit = "step", meaning = "the step at which it ends" }
last_loss = { unit = "nats/token", meaning = "loss of the last computed step" }
lowest_loss = { unit = "nats/token", meaning = "smallest finite loss of any step" }
largest_grad_norm = "largest finite gradient norm before clipping"
nonfinite_steps = { unit = "steps", meaning = "whose loss or gradient norm is NaN or infinite" }
tokens = { unit = "tokens", meaning = "targets trained on in its own steps" }
tokens_per_second = { unit = "tokens/s", meaning = "over its own steps" }
spikes = "number of spikes"
nonfinite = "number of events that tell where NaN or infinity was first seen in a step"
nonfinite_checkpoints = "number of saved states that hold NaN or infinite numbers"
checkpoints = "number of states saved"
last_checkpoint = { unit = "step", meaning = "the latest of them" }
created = { unit = "UTC", meaning = "when it started" }
*/
with chosen as (
    select * from runs where $run = '' or run = $run
),
curves as (
    select
        run,
        count(*) as recorded,
        max(step) + 1 as reached,
        arg_max(loss, step) filter (where loss is not null) as last_loss,
        min(loss) filter (where isfinite(loss)) as lowest_loss,
        max(finite(grad_norm)) as largest_grad_norm,
        count(*) filter (where not isfinite(loss) or not isfinite(grad_norm)) as nonfinite_steps,
        sum(tokens)::bigint as tokens,
        sum(seconds) as seconds
    from steps
    group by run
),
happened as (
    select
        run,
        count(*) filter (where kind = 'spike') as spikes,
        count(*) filter (where kind = 'nonfinite') as nonfinite
    from events
    group by run
),
saved as (
    select
        run, count(*) as checkpoints, max(step) as last_checkpoint,
        count(*) filter (where nonfinite > 0) as nonfinite_checkpoints
    from checkpoints
    group by run
),
final as (
    select
        chosen.run, parent, parent_step, status, recipe, parameters, recorded, reached, steps,
        last_loss, lowest_loss, largest_grad_norm, coalesce(nonfinite_steps, 0) as nonfinite_steps,
        tokens,
        tokens / nullif(seconds, 0) as tokens_per_second, coalesce(spikes, 0) as spikes,
        coalesce(nonfinite, 0) as nonfinite,
        coalesce(nonfinite_checkpoints, 0) as nonfinite_checkpoints,
        coalesce(checkpoints, 0) as checkpoints,
        last_checkpoint, created
    from chosen
    left join curves on curves.run = chosen.run
    left join happened on happened.run = chosen.run
    left join saved on saved.run = chosen.run
    order by created, chosen.run
)
select * from final
