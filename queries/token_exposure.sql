/*
sentence = "How often a token had been met by a state, by the last vocabulary recorded up to it."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the state" }
token = { type = "int", meaning = "the token's id" }

[columns]
step = { unit = "step", meaning = "the recorded state: the last at or before the one asked" }
token = "the token's id"
text = "the token as text"
category = "category as in arXiv 2405.05417"
indicator = "indicator of under-training: low is suspect"
exposure_in = "times it was an input in applied steps"
exposure_out = "times it was a counted target in applied steps"
exposure_grad = "input positions from which some counted target is reachable"
documents = "number of distinct documents it was met in"
first_seen = { unit = "step", meaning = "first applied step that met it" }
last_seen = { unit = "step", meaning = "last applied step that met it" }
cause = "why it is under-trained; NULL: none is known"
*/
with recorded as (  -- a state belongs to both runs where one leaves the other
    select v.*
    from vocabulary as v
    join lineage($run) as l on l.run = v.run and v.step >= l.first_step and v.step <= l.last_step
    where v.token = $token and v.step <= $step
),
final as (
    select
        step, token, text, category, indicator, exposure_in, exposure_out, exposure_grad, documents,
        first_seen, last_seen, cause
    from recorded
    order by step desc
    limit 1
)
select * from final
