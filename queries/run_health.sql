/*
sentence = "Which runs are healthy: spikes, non-finite values, the late loss; of forks the effect."

[columns]
run = "the run"
loss_spikes = "number of spikes of the loss"
grad_norm_spikes = "number of spikes of the gradient norm"
nonfinite = "number of events that tell where NaN or infinity was first seen in a step"
notes = "number of notes in its logbook"
late_loss = { unit = "nats/token", meaning = "mean loss of the newest hundred steps rolled up" }
largest_grad_norm = "largest finite gradient norm before clipping"
placebos = "of a fork: number of placebos it is compared with"
chaos = "of a fork: number of chaos forks it is compared with"
control_bitwise = "of a fork: the control equalled the parent bit by bit; if not: to tolerance only"
effect = "of a fork: its distance over the placebos' median"
p = "of a fork: (1 + placebos at least as far) / (placebos + 1)"
sentence = "of a fork: what its intervention does"
*/
with happened as (
    select
        run,
        count(*) filter (where kind = 'spike' and metric = 'loss') as loss_spikes,
        count(*) filter (where kind = 'spike' and metric = 'grad_norm') as grad_norm_spikes,
        count(*) filter (where kind = 'nonfinite') as nonfinite,
        count(*) filter (where kind = 'note') as notes
    from events
    group by run
),
curves as (  -- from the roll-ups alone: the loss of the newest hundred steps
    select
        run, arg_max(loss_mean, bucket) filter (where loss_mean is not null) as late_loss,
        max(grad_norm_max) as largest_grad_norm
    from steps_by100
    group by run
),
compared as (
    select
        run, any_value(placebos) as placebos, any_value(chaos) as chaos,
        any_value(control_bitwise) as control_bitwise, any_value(effect) as effect,
        any_value(p) as p, any_value(sentence) as sentence
    from forks
    group by run
),
final as (
    select
        r.run, coalesce(loss_spikes, 0) as loss_spikes,
        coalesce(grad_norm_spikes, 0) as grad_norm_spikes, coalesce(nonfinite, 0) as nonfinite,
        coalesce(notes, 0) as notes, late_loss, largest_grad_norm,
        coalesce(placebos, 0) as placebos, coalesce(chaos, 0) as chaos, control_bitwise, effect,
        p, sentence
    from runs as r
    left join happened using (run)
    left join curves using (run)
    left join compared using (run)
    order by r.run
)
select * from final
