with span as (
    select run, first_step, last_step from lineage($run)
),
past as (
    select median(s.loss) as baseline
    from steps as s join span on span.run = s.run and s.step >= span.first_step and s.step < span.last_step
    where s.step >= $step - 64 and s.step < $step and isfinite(s.loss)
),
before as (
    select quantile_cont(s.loss, 0.9) as high
    from sequences as s join span on span.run = s.run and s.step >= span.first_step and s.step < span.last_step
    where s.step >= $step - 64 and s.step < $step and isfinite(s.loss)
),
batch as (
    select s.slot, s.sequence, s.loss, s.weight, (s.loss - past.baseline) * s.weight as excess, past.baseline,
        coalesce(s.loss > before.high, false) as above
    from sequences as s join span on span.run = s.run and s.step >= span.first_step and s.step < span.last_step
    cross join past cross join before
    where s.step = $step and s.weight > 0 and isfinite(s.loss)
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
