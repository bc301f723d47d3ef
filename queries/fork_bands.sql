with long as (
    select step, kind, m.measure, m.value
    from fork_arms, unnest([
        {'measure': 'l2', 'value': l2}, {'measure': 'logit_kl', 'value': logit_kl},
        {'measure': 'loss_gap', 'value': loss_gap}, {'measure': 'unseen_gap', 'value': unseen_gap}
    ]) as each(m)
    where kind in ('placebo', 'chaos')
),
final as (
    select
        step, kind, measure, quantile_cont(value, 0.1) as low, median(value) as middle,
        quantile_cont(value, 0.9) as high, count(*) as forks
    from long
    where value is not null
    group by step, kind, measure
    order by measure, kind, step
)
select * from final
