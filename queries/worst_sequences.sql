/*
sentence = "The sequences of one batch with the highest loss, and the documents they come from."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the batch" }
top = { type = "int", default = 8, meaning = "sequences at most" }

[columns]
run = "the run or an ancestor: whose batch it is"
step = { unit = "step", meaning = "the batch" }
slot = "row of the batch"
sequence = "id in the corpus; −1: made by an intervention"
loss = { unit = "nats/token", meaning = "mean over the sequence's targets" }
above_median = { unit = "nats/token", meaning = "its loss − the median of the batch's sequences" }
weight = "sum of its targets' weights"
repeat_share = "share of its tokens in an n-gram repeated 32 or more times in a row"
source = "name of its source in the recipe"
first_token = "offset of its first token in the source"
documents = "number of documents it touches"
document = "the document that supplies most of it"
path = "where that document came from"
document_tokens = { unit = "tokens", meaning = "of that document in this sequence" }
tags = "that document's marks"
*/
with batch as (
    select * from sequences_along($run) where step = $step
),
worst as (
    select
        *,
        loss - median(finite(loss)) over () as above_median,
        row_number() over (order by loss desc nulls last, slot) as place
    from batch
    qualify place <= $top
),
-- include shared/sequence_cuts.sql
located as (
    select
        w.*, src.source, (w.sequence - src.first_sequence) * stride as first_token, length
    from worst as w
    join lengths on lengths.run = w.run
    left join sources as src
        on src.run = w.run and w.sequence >= src.first_sequence
        and w.sequence < src.first_sequence + src.sequences
),
parts as (
    select
        o.slot, d.document, d.path, d.tags,
        least(d.first_token + d.tokens, o.first_token + o.length)
            - greatest(d.first_token, o.first_token) as overlap
    from located as o
    join documents as d
        on d.run = o.run and d.source = o.source
        and d.first_token < o.first_token + o.length and d.first_token + d.tokens > o.first_token
),
supplied as (
    select
        slot, count(*) as documents, arg_max(document, overlap) as document,
        arg_max(path, overlap) as path, arg_max(tags, overlap) as tags,
        max(overlap) as document_tokens
    from parts
    group by slot
),
final as (
    select
        o.run, o.step, o.slot, o.sequence, o.loss, o.above_median, o.weight, o.repeat_share,
        o.source, o.first_token, s.documents, s.document, s.path, s.document_tokens, s.tags
    from located as o
    left join supplied as s on s.slot = o.slot
    order by o.place
)
select * from final
