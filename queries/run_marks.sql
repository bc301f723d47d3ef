with final as (
    select run, step, coalesce(spike_kind, 'nonfinite') as kind, metric, sigma
    from events
    where (kind = 'spike' and metric = 'loss') or kind = 'nonfinite'
    order by run, step
)
select * from final
