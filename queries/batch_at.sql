with located as (
    select slot, sequence, loss, weight, repeat_share, source, first_token, documents, document, path, document_tokens
    from worst_sequences
),
span as (
    select run, first_step, last_step from lineage($run)
),
past as (
    select
        median(s.loss) as middle, 1.4826 * mad(s.loss) as scale
    from sequences as s join span on span.run = s.run and s.step >= span.first_step and s.step < span.last_step
    where s.step >= $step - 64 and s.step < $step and isfinite(s.loss)
),
batch as (
    select median(s.loss) as baseline
    from steps as s join span on span.run = s.run and s.step >= span.first_step and s.step < span.last_step
    where s.step >= $step - 64 and s.step < $step and isfinite(s.loss)
),
excess as (
    select
        l.*, batch.baseline, (l.loss - batch.baseline) * l.weight as excess,
        case
            when not isfinite(l.loss) then 'infinity'::double
            when past.scale > 0 then (l.loss - past.middle) / past.scale
        end as z
    from located as l, batch, past
),
total as (
    select sum(excess) filter (isfinite(excess)) as excess from excess
),
final as (
    select
        row_number() over (order by e.loss desc nulls last, e.slot) - 1 as place,
        e.slot, e.sequence, e.loss, e.baseline, e.excess,
        case when isfinite(e.excess) then e.excess / nullif(total.excess, 0) end as share,
        e.z,
        (case
            when abs(e.z) >= 40 then 5 when abs(e.z) >= 20 then 4 when abs(e.z) >= 10 then 3 when abs(e.z) >= 6 then 2
            when abs(e.z) >= 3 then 1 else 0
        end * sign(e.z))::integer as level,
        e.weight, e.repeat_share, e.source, e.documents, e.document, e.path, e.document_tokens
    from excess as e, total
    order by place
)
select * from final
