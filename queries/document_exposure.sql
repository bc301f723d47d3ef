with document as (
    select d.run, d.document, d.source, d.path, d.first_token, d.tokens
    from documents as d
    where d.document = $document and d.run in (select run from lineage($run))
),
spans as (  -- the sequences that hold a token of it: number i is tokens [i·T, i·T + T]
    select
        d.run, d.path, src.first_sequence,
        greatest(ceil((d.first_token - length) / length), 0)::bigint + src.first_sequence as low,
        least((d.first_token + d.tokens - 1) // length, src.sequences - 1) + src.first_sequence as high
    from document as d
    join (
        select run, cast(config ->> '$.data.sequence_length' as bigint) as length from runs
    ) as r on r.run = d.run
    join sources as src on src.run = d.run and src.source = d.source
),
final as (
    select s.run, s.step, s.slot, s.sequence, s.loss, s.weight, spans.path
    from sequences as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
    join spans on spans.run = s.run and s.sequence between spans.low and spans.high
    where s.step < $last
    order by s.step, s.slot
)
select * from final
