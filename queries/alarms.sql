with chosen as (
    select run from runs
    where trim($runs) in ('', '*') or list_contains(string_split(replace($runs, ' ', ''), ','), run)
),
watched as (  -- NULL is a step that was not computed: it is neither judged nor in a window
    select run, step, 'monitor_loss' as detector, loss as x
    from steps semi join chosen using (run) where loss is not null
    union all
    select run, step, 'monitor_grad_norm', grad_norm
    from steps semi join chosen using (run) where grad_norm is not null
),
broken as (
    select run, step, detector from watched where not isfinite(x)
),
moments as (
    select *, count(*) over earlier as n, avg(x) over earlier as mean, stddev_samp(x) over earlier as sigma
    from watched
    where isfinite(x)
    window earlier as (partition by run, detector order by step rows between 128 preceding and 1 preceding)
),
monitored as (  -- a constant series has σ = 0: what rounding leaves of x − mean is no alarm
    select run, step, detector from moments where n >= 64 and x - mean > greatest(6 * sigma, 1e-9 * abs(mean))
    union all select * from broken
),
levels as (  -- the median of the last 128 gradient norms, the step's own included
    select run, step, median(x) over latest as level, count(*) over latest as n
    from watched
    where detector = 'monitor_grad_norm' and isfinite(x)
    window latest as (partition by run order by step rows between 127 preceding and current row)
),
creep as (
    select *, min(level) over (partition by run order by step rows unbounded preceding) as lowest
    from levels where n = 128
),
series as (  -- what a robust z judges, up is bad; `floor` is the least σ; a row that cannot be an alarm reaches back 0
    select
        run, step, 'gss_share' as detector, tensor, 0 as layer, 0 as head, gss_share::double as x, 1e-4 as floor,
        if(gss_share > 6e-4, 128, 0) as reach  -- no share is below 0, so no median is, and 6 of the least σ are 6e-4
    from tensors semi join chosen using (run)
    union all
    select run, step, 'entropy_collapse', '', layer, head, -attn_entropy_norm::double, 1e-3, 128
    from heads semi join chosen using (run)
    union all
    select run, step, 'logit_growth', '', layer, head, ln(greatest(attn_logit_max::double, 1)), 0.01, 128
    from heads semi join chosen using (run)
    union all
    select run, step, 'robust_grad_norm', '', 0, 0, x, 1e-12, 128
    from watched where detector = 'monitor_grad_norm'
),
bands as (
    select *, count(*) over earlier as n, median(x) over earlier as middle, mad(x) over earlier as mad
    from series
    where isfinite(x)
    window earlier as (
        partition by run, detector, tensor, layer, head order by step rows between reach preceding and 1 preceding
    )
),
fired as (
    select * from monitored
    union all select run, step, 'skip_step' from monitored
    union all select run, step, detector from bands where n >= 64 and (x - middle) / greatest(1.4826 * mad, floor) > 6
    union all select run, step, 'robust_grad_norm' from broken where detector = 'monitor_grad_norm'
    union all select run, step, 'grad_norm_trend' from creep where level >= 1.5 * lowest and level > lowest
    union all
    select run, step, 'rms_t' from tensors semi join chosen using (run) where rms_t::double > 2.3 and not isnan(rms_t)
    union all
    select run, step, 'entropy_collapse' from heads semi join chosen using (run)
    where attn_entropy_norm::double < 0.05 and not isnan(attn_entropy_norm)
    union all
    select run, step, 'logit_growth' from heads semi join chosen using (run)
    where attn_logit_max > 1e4 and not isnan(attn_logit_max)
    union all
    select run, coalesce(onset, step), 'spike_grad_norm' from events semi join chosen using (run)
    where kind = 'spike' and metric = 'grad_norm'
),
final as (
    select distinct run, step, detector from fired order by run, step, detector
)
select * from final
