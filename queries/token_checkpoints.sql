with final as (
    select
        step, count(*) as tokens, count(indicator) as measured, count(*) filter (exposure_in = 0 and exposure_out = 0) as never_met,
        count(*) filter (exposure_grad = 0) as never_trained, count(cause) as caused
    from vocabulary
    where run = $run
    group by step
    order by step
)
select * from final
