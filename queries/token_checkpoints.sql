/*
sentence = "At which checkpoints the tokens were measured, and how many had never been met."

[parameters]
run = { type = "run", meaning = "the run" }

[columns]
step = { unit = "step", meaning = "the checkpoint" }
tokens = "number of tokens in the vocabulary"
measured = "number of tokens with an indicator"
never_met = "number of tokens that were neither an input nor a target by then"
never_trained = "number of tokens with no input position from which a counted target is reachable"
caused = "number of tokens with a known cause"
*/
with final as (
    select
        step, count(*) as tokens, count(indicator) as measured,
        count(*) filter (exposure_in = 0 and exposure_out = 0) as never_met,
        count(*) filter (exposure_grad = 0) as never_trained, count(cause) as caused
    from vocabulary
    where run = $run
    group by step
    order by step
)
select * from final
