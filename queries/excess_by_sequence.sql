/*
sentence = "How a batch's excess loss is spread over its sequences, the largest first."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the batch" }

[columns]
slot = "row of the batch"
sequence = "id in the corpus"
loss = { unit = "nats/token", meaning = "mean over the sequence's targets" }
baseline = { unit = "nats/token", meaning = "median batch loss of the 64 steps before" }
above = "its loss is above nine in ten of the sequences of those steps"
excess = { unit = "nats", meaning = "(loss − baseline) · weight" }
share = "of the batch's excess; shares sum to 1, those of sequences below the baseline are negative"
sequences = "number of sequences in the batch"
batch_excess = { unit = "nats/token", meaning = "the batch's loss above the baseline" }
*/
with span as (  -- the runs of the trajectory, each with the steps that are its own
    select run, first_step, last_step from lineage($run)
),
steps_before as (
    select median(loss) as baseline
    from steps as s
    join span on span.run = s.run and s.step >= first_step and s.step < last_step
    where step >= $step - 64 and step < $step and isfinite(loss)
),
sequences_before as (
    select quantile_cont(loss, 0.9) as high
    from sequences as s
    join span on span.run = s.run and s.step >= first_step and s.step < last_step
    where step >= $step - 64 and step < $step and isfinite(loss)
),
batch as (
    select
        slot, sequence, loss, weight, (loss - baseline) * weight as excess, baseline,
        coalesce(loss > high, false) as above
    from sequences as s
    join span on span.run = s.run and s.step >= first_step and s.step < last_step
    cross join steps_before cross join sequences_before
    where step = $step and weight > 0 and isfinite(loss)
),
final as (
    select
        slot, sequence, loss, baseline, above, excess,
        excess / nullif(sum(excess) over (), 0) as share,
        count(*) over () as sequences, sum(excess) over () / sum(weight) over () as batch_excess
    from batch
    order by excess desc, slot
)
select * from final
