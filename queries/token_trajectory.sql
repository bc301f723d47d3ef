/*
sentence = "One token over the checkpoints: exposure, indicator beside that of untouched tokens."

[parameters]
run = { type = "run", meaning = "the run" }
token = { type = "int", meaning = "the token's id" }

[columns]
step = { unit = "step", meaning = "the checkpoint" }
indicator = "indicator of under-training: low is suspect"
exposure_in = "times it was an input by then"
exposure_out = "times it was a counted target by then"
exposure_grad = "input positions by then from which some counted target is reachable"
documents = "number of distinct documents it was met in by then"
first_seen = { unit = "step", meaning = "first applied step that met it" }
last_seen = { unit = "step", meaning = "last applied step by then that met it" }
cause = "why it is under-trained, as known at that checkpoint"
low = "10th percentile of the indicator over tokens that nothing had reached by then"
middle = "their median"
high = "their 90th percentile"
unmet = "number of those tokens"
*/
with unreached as (  -- the indicator of tokens that nothing has reached by then
    select
        step, quantile_cont(indicator, 0.1) as low, median(indicator) as middle,
        quantile_cont(indicator, 0.9) as high, count(*) as unmet
    from vocabulary
    where run = $run and exposure_grad = 0 and exposure_out = 0 and indicator is not null
    group by step
),
final as (
    select
        v.step, v.indicator, v.exposure_in, v.exposure_out, v.exposure_grad, v.documents,
        v.first_seen, v.last_seen, v.cause, u.low, u.middle, u.high, u.unmet
    from vocabulary as v
    left join unreached as u on u.step = v.step
    where v.run = $run and v.token = $token
    order by v.step
)
select * from final
