/*
sentence = "Every batch that held a token of a document."

[parameters]
run = { type = "run", meaning = "the run" }
document = { type = "int", meaning = "the document's id" }
last = { type = "int", default = 9223372036854775807, meaning = "the state asked: steps before it" }

[columns]
run = "the run or an ancestor: whose batch it is"
step = { unit = "step", meaning = "the batch" }
slot = "row of the batch"
sequence = "id in the corpus"
loss = { unit = "nats/token", meaning = "mean over the sequence's targets" }
weight = "sum of its targets' weights"
path = "where the document came from"
*/
with document as (
    select run, document, source, path, first_token, tokens
    from documents
    where document = $document and run in (select run from lineage($run))
),
-- include shared/sequence_cuts.sql
spans as (  -- the sequences that hold a token of it
    select
        d.run, d.path, src.first_sequence,
        greatest(ceil((d.first_token - length + 1) / stride), 0)::bigint + src.first_sequence
            as low,
        least((d.first_token + d.tokens - 1) // stride, src.sequences - 1) + src.first_sequence
            as high
    from document as d
    join lengths on lengths.run = d.run
    join sources as src on src.run = d.run and src.source = d.source
),
final as (
    select s.run, s.step, s.slot, s.sequence, s.loss, s.weight, spans.path
    from sequences_along($run) as s
    join spans on spans.run = s.run and s.sequence between spans.low and spans.high
    where s.step < $last
    order by s.step, s.slot
)
select * from final
