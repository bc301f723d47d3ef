/*
sentence = "Every token of a run at a checkpoint: indicator and exposure, lowest indicator first."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", default = -1, meaning = "the checkpoint; -1: the last that was measured" }
tied = { type = "int", default = 0, meaning = "1: embedding tied, so targets move its rows too" }

[columns]
step = { unit = "step", meaning = "the checkpoint" }
token = "the token's id"
text = "the token as text"
category = "category as in arXiv 2405.05417"
indicator = "indicator of under-training: low is suspect"
exposure_in = "times it was an input in applied steps"
exposure_out = "times it was a counted target in applied steps"
exposure_grad = "input positions from which some counted target is reachable"
exposure.unit = ""
exposure.meaning = """what moved the row that the indicator reads: exposure_grad; tied: or \
exposure_out, where that is more"""
documents = "number of distinct documents it was met in"
first_seen = { unit = "step", meaning = "first applied step that met it" }
last_seen = { unit = "step", meaning = "last applied step that met it" }
cause = "why it is under-trained; NULL: none is known"
kind = "its cause; without one `unreachable` or `partial-utf8` by its category; else ok"
*/
with latest as (
    select coalesce(nullif($step, -1), max(step)) as step from vocabulary where run = $run
),
points as (
    select
        v.step, v.token, v.text, v.category, v.indicator, v.exposure_in, v.exposure_out,
        v.exposure_grad,
        greatest(v.exposure_grad, case when $tied = 1 then v.exposure_out else 0 end) as exposure,
        v.documents, v.first_seen, v.last_seen, v.cause
    from vocabulary as v
    join latest on latest.step = v.step
    where v.run = $run
),
final as (
    select
        *,
        case
            when cause is not null then cause
            when category like 'UNREACHABLE%' then 'unreachable'
            when category = 'UNDECODEABLE' then 'partial-utf8'
            else 'ok'
        end as kind
    from points
    order by indicator nulls last, token
)
select * from final
