/*
sentence = "Every step at which a detector's rule says that something is wrong, and which detector."

[parameters]
runs = { type = "runs", default = "", meaning = "names with commas between; empty or *: all runs" }

[columns]
run = "the run; each run's own steps are judged, not its ancestors'"
step = { unit = "step", meaning = "the step; a rule uses no value after it" }
detector = """the rule; windows hold the last 128 finite values before the step, at least 64. \
monitor_loss, monitor_grad_norm: over mean + 6σ, or not finite (to rounding: a rise below 1e-9 of \
the mean is none). skip_step: either of them. robust_grad_norm: over median + 6·1.4826·MAD, or \
not finite; unlike the spike detector's, its window takes outliers in and never restarts. \
spike_grad_norm: the onset of each recorded spike of the gradient norm, which is the spike \
detector itself, restarts and all. grad_norm_trend: the median of the last 128 is 1.5 times its \
lowest. rms_t: above 2.3 in any tensor. gss_share, entropy_collapse, logit_growth: robust z \
beyond 6 in any tensor or head (least σ 1e-4, 1e-3, and 0.01 of the logarithm), or entropy below \
0.05 of uniform, or a logit above 1e4. cusum_loss, cusum_grad_norm: CUSUM of (z − 0.5) above 10, \
z in σ of the mean of the window, cut at ± 4: small rises that last. update_norm: robust z of ‖Δθ‖ \
beyond 6. relative_change: of the log of the largest ‖Δθ‖/‖θ‖ of any tensor, act_kurtosis: of the \
log of the residual stream's kurtosis in any layer (least σ 0.01)"""
*/
with chosen as (
    select run from runs where is_listed(run, $runs)
),
watched as (  -- NULL is a step that was not computed: it is neither judged nor in a window
    select run, step, 'monitor_loss' as detector, loss as x
    from steps semi join chosen using (run)
    where loss is not null
    union all
    select run, step, 'monitor_grad_norm', grad_norm
    from steps semi join chosen using (run)
    where grad_norm is not null
),
broken as (
    select run, step, detector from watched where not isfinite(x)
),
moments as (
    select
        *, count(*) over earlier as n, avg(x) over earlier as mean,
        stddev_samp(x) over earlier as sigma
    from watched
    where isfinite(x)
    window earlier as (
        partition by run, detector order by step rows between 128 preceding and 1 preceding
    )
),
monitored as (  -- a constant series has σ = 0: what rounding leaves of x − mean is no alarm
    select run, step, detector
    from moments
    where n >= 64 and x - mean > greatest(6 * sigma, 1e-9 * abs(mean))
    union all select * from broken
),
summed as (  -- CUSUM: the sum less its least so far is the sum that is never below 0
    select
        run, step, detector,
        sum(
            if(
                sigma > 1e-9 * abs(mean), greatest(least((x - mean) / sigma, 4), -4), 0
            ) - 0.5
        ) over (partition by run, detector order by step) as total
    from moments
    where n >= 64
),
risen as (
    select
        run, step, replace(detector, 'monitor', 'cusum') as detector,
        total - least(min(total) over (partition by run, detector order by step), 0) as above
    from summed
),
levels as (  -- the median of the last 128 gradient norms, the step's own included
    select run, step, median(x) over latest as level, count(*) over latest as n
    from watched
    where detector = 'monitor_grad_norm' and isfinite(x)
    window latest as (partition by run order by step rows between 127 preceding and current row)
),
creep as (
    select
        *, min(level) over (partition by run order by step rows unbounded preceding) as lowest
    from levels
    where n = 128
),
series as (  -- what a robust z judges, up is bad; `floor` is the least σ
    select
        run, step, 'entropy_collapse' as detector, layer, head,
        -attn_entropy_norm::double as x, 1e-3 as floor
    from heads semi join chosen using (run)
    union all
    select run, step, 'logit_growth', layer, head, ln(greatest(attn_logit_max::double, 1)), 0.01
    from heads semi join chosen using (run)
    union all
    select run, step, 'act_kurtosis', layer, 0, ln(act_kurtosis::double), 0.01
    from layers semi join chosen using (run)
    where act_kurtosis > 0
    union all
    select run, step, 'relative_change', 0, 0, ln(max(update_ratio)::double), 0.01
    from tensors semi join chosen using (run)
    where isfinite(update_ratio) and update_ratio > 0
    group by run, step
    union all
    select run, step, 'update_norm', 0, 0, update_norm, 1e-12
    from steps semi join chosen using (run)
    where update_norm is not null
    union all
    select run, step, 'robust_grad_norm', 0, 0, x, 1e-12
    from watched
    where detector = 'monitor_grad_norm'
),
quartered as (
    select
        *, row_number() over earlier as place,
        quantile_cont(x, [0.27, 0.5, 0.73]) over earlier as q
    from series
    where isfinite(x)
    window earlier as (
        partition by run, detector, layer, head order by step
        rows between 128 preceding and 1 preceding
    )
),
placed as (
    -- MAD costs most, so it is taken of suspects alone: more than half of a window lies in
    -- [m − MAD, m + MAD], less than half between the quantiles 0.27 and 0.73, so MAD reaches the
    -- nearer of them. The median of shares, none of which is below 0, is not below 0 either, and 6
    -- of their least σ are 6e-4.
    select
        run, step, detector, '' as tensor, layer, head, x, floor, place,
        x - q[2] > 5.9 * greatest(floor, 1.4826 * least(q[3] - q[2], q[2] - q[1])) as suspect
    from quartered
    union all
    select
        run, step, 'gss_share', tensor, 0, 0, gss_share::double, 1e-4,
        row_number() over (partition by run, tensor order by step), gss_share > 6e-4
    from tensors semi join chosen using (run)
    where isfinite(gss_share)
),
suspects as (
    select *, unnest([place // 128, place // 128 - 1]) as block
    from placed
    where suspect and place > 64
),
bands as (
    select
        s.run, s.step, s.detector, any_value(s.x) as x, any_value(s.floor) as floor,
        median(e.x) as middle, robust_sigma(e.x) as sigma
    from suspects as s
    join placed as e
        on e.run = s.run and e.detector = s.detector and e.tensor = s.tensor
        and e.layer = s.layer and e.head = s.head
        and e.place // 128 = s.block and e.place >= s.place - 128 and e.place < s.place
    group by s.run, s.step, s.detector, s.tensor, s.layer, s.head
),
fired as (
    select * from monitored
    union all
    select run, step, 'skip_step' from monitored
    union all
    select run, step, detector from risen where above > 10
    union all
    select run, step, detector from bands where (x - middle) / greatest(sigma, floor) > 6
    union all
    select run, step, 'robust_grad_norm' from broken where detector = 'monitor_grad_norm'
    union all
    select run, step, 'grad_norm_trend' from creep where level >= 1.5 * lowest and level > lowest
    union all
    select run, step, 'rms_t'
    from tensors semi join chosen using (run)
    where rms_t::double > 2.3 and not isnan(rms_t)
    union all
    select run, step, 'entropy_collapse'
    from heads semi join chosen using (run)
    where attn_entropy_norm::double < 0.05 and not isnan(attn_entropy_norm)
    union all
    select run, step, 'logit_growth'
    from heads semi join chosen using (run)
    where attn_logit_max > 1e4 and not isnan(attn_logit_max)
    union all
    select run, coalesce(onset, step), 'spike_grad_norm'
    from events semi join chosen using (run)
    where kind = 'spike' and metric = 'grad_norm'
),
final as (
    select distinct run, step, detector from fired order by run, step, detector
)
select * from final
