with other as (  -- what the indicator is of tokens that nothing has reached by then
    select step, quantile_cont(indicator, 0.1) as low, median(indicator) as middle, quantile_cont(indicator, 0.9) as high,
        count(*) as unmet
    from vocabulary
    where run = $run and exposure_grad = 0 and exposure_out = 0 and indicator is not null
    group by step
),
final as (
    select
        v.step, v.indicator, v.exposure_in, v.exposure_out, v.exposure_grad, v.documents, v.first_seen, v.last_seen,
        v.cause, o.low, o.middle, o.high, o.unmet
    from vocabulary as v left join other as o on o.step = v.step
    where v.run = $run and v.token = $token
    order by v.step
)
select * from final
