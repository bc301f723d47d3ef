with known as (
    select v.*
    from vocabulary as v
    join lineage($run) as l on l.run = v.run and v.step >= l.first_step and v.step <= l.last_step
    where v.token = $token and v.step <= $step
),
final as (
    select
        step, token, text, category, indicator, exposure_in, exposure_out, exposure_grad, documents,
        first_seen, last_seen, cause
    from known order by step desc limit 1
)
select * from final
