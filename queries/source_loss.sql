/*
sentence = "Mean loss and share of each source over the steps."

[parameters]
run = { type = "run", meaning = "the run" }
first = { type = "int", default = 0, meaning = "first step" }
last = { type = "int", default = 9223372036854775807, meaning = "first step that is left out" }
every = { type = "int", default = 50, low = 1, meaning = "steps per row" }

[columns]
step = { unit = "step", meaning = "first step of the bin" }
source = "name of the source in the recipe; (made): by an intervention"
sequences = "number of its sequences in the bin"
tokens = "sum of their targets' weights"
loss = { unit = "nats/token", meaning = "weighted mean over those targets, of finite losses" }
worst_loss = { unit = "nats/token", meaning = "highest finite loss of a sequence" }
nonfinite = "sequences whose loss is NaN or infinite"
repeat_share = { unit = "share", meaning = "tokens in repeated n-grams, mean over sequences" }
share = "of the bin's sequences"
*/
with trajectory as (
    select *, step // $every * $every as bin
    from sequences_along($run)
    where step >= $first and step < $last
),
labelled as (
    select t.bin, t.loss, t.weight, t.repeat_share, coalesce(src.source, '(made)') as source
    from trajectory as t
    left join sources as src
        on src.run = t.run and t.sequence >= src.first_sequence
        and t.sequence < src.first_sequence + src.sequences
),
final as (
    select
        bin as step, source, count(*) as sequences, sum(weight) as tokens,
        sum(loss * weight) filter (where weight > 0 and isfinite(loss))
        / nullif(sum(weight) filter (where isfinite(loss)), 0) as loss,
        max(finite(loss)) as worst_loss, nonfinite(loss) as nonfinite,
        avg(repeat_share) as repeat_share,
        count(*) / sum(count(*)) over (partition by bin) as share
    from labelled
    group by bin, source
    order by step, source
)
select * from final
