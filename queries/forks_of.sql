with final as (
    select
        fork, parent, first, last, sentence, effect, p, placebos, chaos, logit_kl, loss_fork - loss_control as loss_gap,
        unseen_gap, l2, time_to_reconverge, control_level, control_bitwise, created
    from forks
    where (trim($runs) in ('', '*') or list_contains(string_split(replace($runs, ' ', ''), ','), run)) and ($parent = '' or parent = $parent)
    order by created desc, fork
)
select * from final
