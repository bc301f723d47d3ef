/*
sentence = "Between which values the placebos and the chaos forks of a fork lie at each step."

[parameters]
run = { type = "run", meaning = "the fork" }
most = { type = "int", default = 400, low = 1, meaning = "rows per arm, each a stretch's last" }

[columns]
step = { unit = "step", meaning = "the state after this many updates" }
kind = "placebo | chaos"
measure = "l2 | logit_kl | loss_gap | unseen_gap, as in `fork_arms`"
low = "10th percentile over the arms of this kind whose value is finite"
middle = "median of those"
high = "90th percentile of those"
forks = "number of arms that were measured"
nonfinite = "how many of them have a value that is NaN or infinite"
*/
with fork_arms as (
-- include fork_arms.sql
),
long as (
    select step, kind, m.measure, m.value
    from fork_arms, unnest([
        {'measure': 'l2', 'value': l2}, {'measure': 'logit_kl', 'value': logit_kl},
        {'measure': 'loss_gap', 'value': loss_gap}, {'measure': 'unseen_gap', 'value': unseen_gap}
    ]) as each(m)
    where kind in ('placebo', 'chaos')
),
final as (
    select
        step, kind, measure, quantile_cont(finite(value), 0.1) as low,
        median(finite(value)) as middle, quantile_cont(finite(value), 0.9) as high,
        count(*) as forks, nonfinite(value) as nonfinite
    from long
    where value is not null
    group by step, kind, measure
    order by measure, kind, step
)
select * from final
