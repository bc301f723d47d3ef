/*
sentence = "The loss of a whole run in bins, from the roll-ups: fast, and no spike is lost."

[parameters]
run = { type = "run", meaning = "the run" }
every = { type = "int", default = 100, low = 100, meaning = "steps per bin, a multiple of 100" }

[columns]
step = { unit = "step", meaning = "first step of the bin" }
step2 = { unit = "step", meaning = "first step after the bin" }
low = { unit = "nats/token", meaning = "smallest finite loss" }
high = { unit = "nats/token", meaning = "largest finite loss" }
mean = { unit = "nats/token", meaning = "mean of the means of 100 steps each" }
nonfinite = "NaN and infinite values of the rolled-up steps, over all columns of `steps`"
*/
with span as (
    select run, first_step, last_step from lineage($run)
),
rolled as (  -- a bucket that an ancestor's end or a fork's start cuts through is left to the rows
    select
        r.run, r.bucket as step, r.rows, r.loss_min as low, r.loss_max as high,
        r.loss_mean as mean, r.nonfinite
    from steps_by100 as r
    join span
        on span.run = r.run and r.bucket >= span.first_step and r.bucket + 100 <= span.last_step
    where r.rows = 100
),
settled as (
    select
        span.run, coalesce(max(rolled.step) + 100, span.first_step) as last,
        coalesce(min(rolled.step), span.last_step) as first
    from span
    left join rolled on rolled.run = span.run
    group by span.run, span.first_step, span.last_step
),
edges as (
    select
        s.step, finite(s.loss) as low, finite(s.loss) as high, finite(s.loss) as mean,
        (not isfinite(s.loss))::bigint as nonfinite
    from steps as s
    join span on span.run = s.run and s.step >= span.first_step and s.step < span.last_step
    join settled on settled.run = s.run and (s.step < settled.first or s.step >= settled.last)
    where s.loss is not null
),
pieces as (
    select step, low, high, mean, nonfinite from rolled
    union all
    select * from edges
),
final as (
    select
        step // $every * $every as step, step // $every * $every + $every as step2,
        min(low) as low, max(high) as high, avg(mean) as mean,
        sum(nonfinite)::bigint as nonfinite
    from pieces
    group by all
    order by 1
)
select * from final
