with trajectory as (
    select s.*, s.step // $every * $every as bin
    from sequences as s
    join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
    where s.step >= $first and s.step < $last
),
labelled as (
    select t.bin, t.loss, t.weight, t.repeat_share, coalesce(src.source, '(made)') as source
    from trajectory as t
    left join sources as src
        on src.run = t.run and t.sequence >= src.first_sequence and t.sequence < src.first_sequence + src.sequences
),
final as (
    select
        bin as step, source, count(*) as sequences, sum(weight) as tokens,
        sum(loss * weight) filter (where weight > 0) / nullif(sum(weight), 0) as loss,
        max(loss) as worst_loss, avg(repeat_share) as repeat_share,
        count(*) / sum(count(*)) over (partition by bin) as share
    from labelled
    group by bin, source
    order by step, source
)
select * from final
