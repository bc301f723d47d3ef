with trajectory as (
    select s.run, s.step, s.loss, s.grad_norm
    from steps as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
),
found as (
    select e.*
    from events as e
    join lineage($run) as l on l.run = e.run and e.step >= l.first_step and e.step < l.last_step
    where e.kind in ('spike', 'nonfinite') and ($metric = '' or e.metric = $metric)
),
cost as (  -- what the spike added to the loss, in nats/token × steps
    select f.step, f.metric, f.kind, sum(greatest(t.loss - f.baseline, 0)) as excess
    from found as f
    join trajectory as t on t.step >= coalesce(f.onset, f.step) and t.step < coalesce(f.recovered_at, f.step + 100)
    where f.kind = 'spike' and f.metric = 'loss' and f.baseline is not null and isfinite(t.loss)
    group by all
),
final as (
    select
        f.run, f.step, f.kind, f.metric, f.value, f.baseline, f.sigma, f.spike_kind, f.onset,
        f.recovered_at, f.recovered_at - f.step as steps_to_recover, cost.excess, f.tensor, f.text
    from found as f
    left join cost on cost.step = f.step and cost.metric = f.metric and cost.kind = f.kind
    order by f.step, f.metric
)
select * from final
