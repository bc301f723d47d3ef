with chosen as (
    select * from runs where $run = '' or run = $run
),
curves as (
    select
        run,
        count(*) as recorded,
        max(step) + 1 as reached,
        arg_max(loss, step) filter (where loss is not null) as last_loss,
        min(loss) filter (where isfinite(loss)) as lowest_loss,
        max(grad_norm) as largest_grad_norm,
        sum(tokens)::bigint as tokens,
        sum(seconds) as seconds
    from steps group by run
),
happened as (
    select
        run,
        count(*) filter (where kind = 'spike') as spikes,
        count(*) filter (where kind = 'nonfinite') as nonfinite
    from events group by run
),
saved as (
    select run, count(*) as checkpoints, max(step) as last_checkpoint from checkpoints group by run
),
final as (
    select
        chosen.run, parent, parent_step, status, recipe, parameters, recorded, reached, steps,
        last_loss, lowest_loss, largest_grad_norm, tokens, tokens / nullif(seconds, 0) as tokens_per_second,
        coalesce(spikes, 0) as spikes, coalesce(nonfinite, 0) as nonfinite,
        coalesce(checkpoints, 0) as checkpoints, last_checkpoint, created
    from chosen
    left join curves on curves.run = chosen.run
    left join happened on happened.run = chosen.run
    left join saved on saved.run = chosen.run
    order by created, chosen.run
)
select * from final
