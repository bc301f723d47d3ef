/*
sentence = "How far a fork moved from its control, beside the placebos."

[parameters]
run = { type = "run", meaning = "the fork" }

[columns]
step = { unit = "step", meaning = "the state after this many updates" }
l2 = "‖θ_fork − θ_control‖₂"
cosine = "of the two displacements from the start"
loss_gap = { unit = "nats/token", meaning = "probe loss of fork − of control, where measured" }
logit_kl = { unit = "nats", meaning = "mean KL(control ‖ fork) on the probe set, where measured" }
placebo_l2 = "median l2 of the placebos"
chaos_l2 = "median l2 of the chaos forks"
effect = "l2 over the placebos' median"
within_placebos = "l2 is at or below the placebos' 95th percentile"
placebos = "number of placebos"
control_level = "exact | reproduces | absent"
control_bitwise = "the control equalled the parent bit by bit; if not: to tolerance only"
*/
with measured as (
    select run, step, arm, l2, cosine, loss_gap, logit_kl
    from divergence
    where run = $run and tensor = ''
),
placebos as (
    select
        step, median(l2) as placebo_l2, quantile_cont(l2, 0.95) as placebo_l2_95,
        count(*) as placebos
    from measured
    where arm like 'placebo-%'
    group by step
),
chaos as (
    select step, median(l2) as chaos_l2 from measured where arm like 'chaos-%' group by step
),
verdict as (
    select run, control_level, control_bitwise from forks where run = $run
),
final as (
    select
        m.step, m.l2, m.cosine, m.loss_gap, m.logit_kl, p.placebo_l2, c.chaos_l2,
        m.l2 / nullif(p.placebo_l2, 0) as effect, m.l2 <= p.placebo_l2_95 as within_placebos,
        coalesce(p.placebos, 0) as placebos, v.control_level, v.control_bitwise
    from measured as m
    left join placebos as p on p.step = m.step
    left join chaos as c on c.step = m.step
    left join verdict as v on v.run = m.run
    where m.arm = 'fork'
    order by m.step
)
select * from final
