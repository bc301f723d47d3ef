/*
sentence = "Every step at which a run has a spike of the loss or a value that is not finite."

[columns]
run = "the run"
step = { unit = "step", meaning = "the step; of a spike, the peak" }
kind = "batch | fast | slow | nonfinite"
metric = "the column that showed it"
sigma = { unit = "σ", meaning = "of a spike: (value − baseline) / the scale of the band" }
*/
with final as (
    select run, step, coalesce(spike_kind, 'nonfinite') as kind, metric, sigma
    from events
    where (kind = 'spike' and metric = 'loss') or kind = 'nonfinite'
    order by run, step
)
select * from final
