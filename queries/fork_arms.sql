/*
sentence = "Every arm of a fork over its window: how far it is from the control."

[parameters]
run = { type = "run", meaning = "the fork" }
most = { type = "int", default = 400, low = 1, meaning = "rows per arm, each a stretch's last" }

[columns]
step = { unit = "step", meaning = "the state after this many updates" }
arm = "fork | placebo-<i> | chaos-<i>"
kind = "fork | placebo | chaos"
l2 = "‖θ_arm − θ_control‖₂"
logit_kl = { unit = "nats", meaning = "mean KL(control ‖ arm) on the probe set, where measured" }
loss_gap = { unit = "nats/token", meaning = "probe loss of arm − of control, where measured" }
unseen_gap = { unit = "nats/token", meaning = "the same on sequences that no arm has consumed" }
*/
with measured as (
    select step, arm, l2, logit_kl, loss_gap, unseen_gap
    from divergence
    where run = $run and tensor = ''
),
stretches as (
    select min(step) as first, greatest((max(step) - min(step) + 1) / $most, 1) as width
    from measured
),
final as (  -- over a long window one row per stretch: its last measurement
    select
        max(m.step) as step, m.arm, regexp_replace(m.arm, '-[0-9]+$', '') as kind,
        arg_max(m.l2, m.step) as l2, arg_max(m.logit_kl, m.step) as logit_kl,
        arg_max(m.loss_gap, m.step) as loss_gap, arg_max(m.unseen_gap, m.step) as unseen_gap
    from measured as m, stretches
    group by m.arm, floor((m.step - stretches.first) / stretches.width)
    order by m.arm, step
)
select * from final
