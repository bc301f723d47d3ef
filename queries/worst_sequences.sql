with batch as (
    select s.*
    from sequences as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
    where s.step = $step
),
worst as (
    select
        *,
        loss - median(loss) over () as above_median,
        row_number() over (order by loss desc nulls last, slot) as place
    from batch
    qualify place <= $top
),
located as (  -- number i of a source is its tokens [i·T, i·T + T]
    select
        w.*, src.source,
        (w.sequence - src.first_sequence) * length as first_token,
        length
    from worst as w
    join (
        select run, cast(config ->> '$.data.sequence_length' as bigint) as length from runs
    ) as r on r.run = w.run
    left join sources as src
        on src.run = w.run and w.sequence >= src.first_sequence and w.sequence < src.first_sequence + src.sequences
),
parts as (
    select
        o.slot, d.document, d.path, d.tags,
        least(d.first_token + d.tokens, o.first_token + o.length + 1)
            - greatest(d.first_token, o.first_token) as overlap
    from located as o
    join documents as d
        on d.run = o.run and d.source = o.source
        and d.first_token <= o.first_token + o.length and d.first_token + d.tokens > o.first_token
),
supplied as (
    select
        slot, count(*) as documents, arg_max(document, overlap) as document, arg_max(path, overlap) as path,
        arg_max(tags, overlap) as tags, max(overlap) as document_tokens
    from parts group by slot
),
final as (
    select
        o.run, o.step, o.slot, o.sequence, o.loss, o.above_median, o.weight, o.repeat_share, o.source,
        o.first_token, s.documents, s.document, s.path, s.document_tokens, s.tags
    from located as o
    left join supplied as s on s.slot = o.slot
    order by o.place
)
select * from final
