/*
sentence = "Every spike and non-finite value of a run, with what it cost."

[parameters]
run = { type = "run", meaning = "the run" }
metric = { type = "text", default = "", meaning = "loss | grad_norm; empty: all" }

[columns]
run = "the run or an ancestor: whose step it is"
step = { unit = "step", meaning = "the peak" }
kind = "spike | nonfinite"
metric = "the column that showed it"
value = "the metric at the peak"
baseline = "centre of the metric's band: what the values before it let one expect"
sigma = { unit = "σ", meaning = "(value − baseline) / the scale of the band" }
spike_kind = "batch | fast | slow"
onset = { unit = "step", meaning = "first outlying step" }
recovered_at = { unit = "step", meaning = "first of five steps in a row back in the band" }
steps_to_recover = { unit = "steps", meaning = "from the peak; NULL: it did not recover" }
excess.unit = "nats/token × steps"
excess.meaning = """loss above the baseline, summed until recovery (100 steps where it did not); \
of loss spikes only"""
tensor = "where a non-finite value appeared first"
text = "the sentence recorded about it"
*/
with happened as (
    select *
    from events_along($run)
    where kind in ('spike', 'nonfinite') and ($metric = '' or metric = $metric)
),
cost as (
    select h.step, h.metric, h.kind, sum(greatest(s.loss - h.baseline, 0)) as excess
    from happened as h
    join steps_along($run) as s
        on s.step >= coalesce(h.onset, h.step) and s.step < coalesce(h.recovered_at, h.step + 100)
    where h.kind = 'spike' and h.metric = 'loss' and h.baseline is not null and isfinite(s.loss)
    group by all
),
final as (
    select
        h.run, h.step, h.kind, h.metric, h.value, h.baseline, h.sigma, h.spike_kind, h.onset,
        h.recovered_at, h.recovered_at - h.step as steps_to_recover, cost.excess, h.tensor, h.text
    from happened as h
    left join cost on cost.step = h.step and cost.metric = h.metric and cost.kind = h.kind
    order by h.step, h.metric
)
select * from final
