/*
sentence = "Every sequence of one batch, highest loss first: its share of the excess, its document."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the batch" }
top = { type = "int", default = 1000000, meaning = "sequences at most" }

[columns]
place = "rank of its loss; 0: the highest"
slot = "row of the batch"
sequence = "id in the corpus; −1: made by an intervention"
loss = { unit = "nats/token", meaning = "mean over the sequence's targets" }
baseline.unit = "nats/token"
baseline.meaning = "what the losses before let one expect, as in `excess_by_sequence`"
excess = { unit = "nats", meaning = "(loss − baseline) · weight" }
share = "of the batch's excess; shares sum to 1, those of sequences below the baseline are negative"
z = { unit = "σ", meaning = "robust z against the sequences of those steps; NULL: there are none" }
apart = "z is 3 or more: of ordinary sequences about 1 in 200"
level = "how many of 3, 6, 10, 20, 40 |z| reaches, with the sign of z"
weight = "sum of its targets' weights"
repeat_share = "share of its tokens in an n-gram repeated 32 or more times in a row"
source = "name of its source in the recipe"
documents = "number of documents it touches"
document = "the document that supplies most of it"
path = "where that document came from"
document_tokens = { unit = "tokens", meaning = "of that document in this sequence" }
*/
with worst_sequences as (
-- include worst_sequences.sql
),
span as (  -- the runs of the trajectory, each with the steps that are its own
    select run, first_step, last_step from lineage($run)
),
-- include shared/step_baseline.sql
-- include shared/sequences_before.sql
excess as (
    select
        w.*, p.baseline, (w.loss - p.baseline) * w.weight as excess,
        case
            when past.scale > 0 or not isfinite(w.loss)
                then robust_z(w.loss, past.middle, past.scale)
        end as z
    from worst_sequences as w, steps_before as p, sequences_before as past
),
total as (
    select sum(excess) filter (isfinite(excess)) as excess from excess
),
final as (
    select
        row_number() over (order by e.loss desc nulls last, e.slot) - 1 as place,
        e.slot, e.sequence, e.loss, e.baseline, e.excess,
        case when isfinite(e.excess) then e.excess / nullif(total.excess, 0) end as share,
        e.z, stands_apart(e.z) as apart, z_level(e.z) as level, e.weight, e.repeat_share, e.source, e.documents, e.document,
        e.path, e.document_tokens
    from excess as e, total
    order by place
)
select * from final
