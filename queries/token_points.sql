with latest as (
    select coalesce(nullif($step, -1), max(step)) as step from vocabulary where run = $run
),
points as (
    select
        v.step, v.token, v.text, v.category, v.indicator, v.exposure_in, v.exposure_out, v.exposure_grad,
        greatest(v.exposure_grad, case when $tied = 1 then v.exposure_out else 0 end) as exposure,
        v.documents, v.first_seen, v.last_seen, v.cause
    from vocabulary as v join latest on latest.step = v.step
    where v.run = $run
),
final as (
    select
        *, case
            when cause is not null then cause
            when category like 'UNREACHABLE%' then 'unreachable'
            when category = 'UNDECODEABLE' then 'partial-utf8'
            else 'ok'
        end as kind
    from points
    order by indicator nulls last, token
)
select * from final
