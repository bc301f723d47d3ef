with happened as (
    select
        run,
        count(*) filter (where kind = 'spike' and metric = 'loss') as loss_spikes,
        count(*) filter (where kind = 'spike' and metric = 'grad_norm') as grad_norm_spikes,
        count(*) filter (where kind = 'nonfinite') as nonfinite,
        count(*) filter (where kind = 'note') as notes
    from events group by run
),
curves as (  -- from the roll-ups alone: the loss of the newest hundred steps
    select run, arg_max(loss_mean, bucket) filter (where loss_mean is not null) as late_loss, max(grad_norm_max) as largest_grad_norm
    from steps_by100 group by run
),
compared as (
    select run, any_value(placebos) as placebos, any_value(chaos) as chaos, any_value(control_bitwise) as control_bitwise,
        any_value(effect) as effect, any_value(p) as p, any_value(sentence) as sentence
    from forks group by run
),
final as (
    select
        r.run, coalesce(loss_spikes, 0) as loss_spikes, coalesce(grad_norm_spikes, 0) as grad_norm_spikes,
        coalesce(nonfinite, 0) as nonfinite, coalesce(notes, 0) as notes, late_loss, largest_grad_norm,
        coalesce(placebos, 0) as placebos, coalesce(chaos, 0) as chaos, control_bitwise, effect, p, sentence
    from runs as r
    left join happened using (run)
    left join curves using (run)
    left join compared using (run)
    order by r.run
)
select * from final
