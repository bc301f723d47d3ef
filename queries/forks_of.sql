/*
sentence = "Finished forks with their effect, newest first."

[parameters]
runs = { type = "runs", default = "", meaning = "the forks, with commas between; empty: all" }
parent = { type = "text", default = "", meaning = "only forks of this run; empty: of any" }

[columns]
fork = "the fork's name"
parent = "the run it left"
first = { unit = "step", meaning = "the state it starts from" }
last = { unit = "step", meaning = "the window is [first, last)" }
sentence = "what its intervention does"
effect = "KL (l2 where nothing is held out) over the placebos' median"
p = "(1 + placebos at least as far) / (placebos + 1)"
placebos = "number of placebos"
chaos = "number of chaos forks"
logit_kl = { unit = "nats", meaning = "mean KL(control ‖ fork) on the probe set at the end" }
loss_gap = { unit = "nats/token", meaning = "probe loss of the fork − of the control at the end" }
unseen_gap = { unit = "nats/token", meaning = "the same on sequences that no arm has consumed" }
l2 = "‖θ_fork − θ_control‖₂ at the end"
time_to_reconverge.unit = "steps"
time_to_reconverge.meaning = "until it stays among the placebos; NULL: not within the window"
control_level = "exact | reproduces | absent"
control_bitwise = "the control equalled the parent bit by bit; if not: to tolerance only"
created = { unit = "UTC", meaning = "when the fork was made" }
*/
with final as (
    select
        fork, parent, first, last, sentence, effect, p, placebos, chaos, logit_kl,
        loss_fork - loss_control as loss_gap, unseen_gap, l2, time_to_reconverge, control_level,
        control_bitwise, created
    from forks
    where is_listed(run, $runs) and ($parent = '' or parent = $parent)
    order by created desc, fork
)
select * from final
