/*
sentence = "The loss of a whole run in bins: smallest, largest, mean; from every step."

[parameters]
run = { type = "run", meaning = "the run" }
every = { type = "int", default = 1, low = 1, meaning = "steps per bin" }

[columns]
step = { unit = "step", meaning = "first step of the bin" }
step2 = { unit = "step", meaning = "first step after the bin" }
low = { unit = "nats/token", meaning = "smallest finite loss" }
high = { unit = "nats/token", meaning = "largest finite loss" }
mean = { unit = "nats/token", meaning = "mean of the finite losses" }
nonfinite = { unit = "steps", meaning = "whose loss is NaN or infinite" }
*/
with final as (
    select
        step // $every * $every as step, step // $every * $every + $every as step2,
        min(loss) filter (where isfinite(loss)) as low,
        max(loss) filter (where isfinite(loss)) as high,
        avg(loss) filter (where isfinite(loss)) as mean, nonfinite(loss) as nonfinite
    from steps_along($run)
    group by all
    order by 1
)
select * from final
