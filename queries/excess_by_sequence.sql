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
above = "its loss is above nine in ten of the sequences of those steps"
excess = { unit = "nats", meaning = "(loss − baseline) · weight" }
share = "of the batch's excess; shares sum to 1, those of sequences below the baseline are negative"
sequences = "number of sequences in the batch"
batch_excess = { unit = "nats/token", meaning = "the batch's loss above the baseline" }
*/
with span as (  -- the runs of the trajectory, each with the steps that are its own
    select run, first_step, last_step from lineage($run)
),
spiked as (  -- the steps of recorded spikes of the loss
    select
        e.onset as first, coalesce(e.recovered_at, e.step + 1) as last, e.baseline
    from events as e
    join span on span.run = e.run and e.step >= first_step and e.step < last_step
    where kind = 'spike' and metric = 'loss'
),
before as (
    select step, loss as x
    from steps as s
    join span on span.run = s.run and s.step >= first_step and s.step < last_step
    where step < $step and isfinite(loss)
        and not exists (from spiked where s.step >= first and s.step < last)
),
-- include shared/band.sql
steps_before as (
    select
        coalesce(
            (select any_value(baseline) from spiked where $step >= first and $step < last), centre
        ) as baseline
    from band
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
