/*
sentence = "How a batch's excess loss is spread over its sequences, the largest first."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the batch" }

[columns]
slot = "row of the batch"
sequence = "id in the corpus"
loss = { unit = "nats/token", meaning = "mean over the sequence's targets" }
baseline.unit = "nats/token"
baseline.meaning = """what the losses before let one expect: of a step in a recorded spike, the \
spike's baseline; else the centre of the step's own band, which no recorded spike before it enters"""
z = { unit = "σ", meaning = "(loss − median) / (1.4826·MAD) of the sequences of the 64 steps before" }
apart = "z is 3 or more: of ordinary sequences about 1 in 200"
excess = { unit = "nats", meaning = "(loss − baseline) · weight" }
share = "of the batch's excess; shares sum to 1, those of sequences below the baseline are negative"
sequences = "number of sequences in the batch"
batch_excess = { unit = "nats/token", meaning = "the batch's loss above the baseline" }
*/
with span as (  -- the runs of the trajectory, each with the steps that are its own
    select run, first_step, last_step from lineage($run)
),
-- include shared/step_baseline.sql
-- include shared/sequences_before.sql
batch as (
    select
        slot, sequence, loss, weight, (loss - baseline) * weight as excess, baseline,
        case when scale > 0 then robust_z(loss, middle, scale) end as z
    from sequences as s
    join span on span.run = s.run and s.step >= first_step and s.step < last_step
    cross join steps_before cross join sequences_before
    where step = $step and weight > 0 and isfinite(loss)
),
final as (
    select
        slot, sequence, loss, baseline, z, coalesce(stands_apart(z), false) as apart, excess,
        excess / nullif(sum(excess) over (), 0) as share,
        count(*) over () as sequences, sum(excess) over () / sum(weight) over () as batch_excess
    from batch
    order by excess desc, slot
)
select * from final
