/*
sentence = "How well each detector foretells loss spikes, beside random alarms: best first."

[parameters]
runs = { type = "runs", default = "", meaning = "names with commas between; empty or *: all runs" }
horizon = { type = "int", default = 20, low = 1, meaning = "steps before an onset that count" }

[columns]
detector = "the rule, as in `alarms`"
runs = "number of runs; of each, its own steps are judged, not its ancestors'"
steps = { unit = "steps", meaning = "of those runs together" }
steps_read = { unit = "steps", meaning = "that hold what the detector reads; 0: it could not fire" }
spikes = "recorded spikes of the loss"
alarms = { unit = "steps", meaning = "at which it fired" }
hits = "spikes with an alarm in [onset − horizon, onset)"
misses = "spikes without one"
median_lead = { unit = "steps", meaning = "from the first such alarm to the onset, median of hits" }
false_alarms = "alarms with no onset within the horizon after them; also late ones, in a spike"
false_per_1000 = { unit = "1/1000 steps", meaning = "false alarms" }
random_hits.unit = ""
random_hits.meaning = """expected hits of as many alarms on random steps of the same run, exact \
(hypergeometric); alarms in bursts would hit less"""
*/
with alarms as (
-- include alarms.sql
),
chosen as (
    select run from runs where is_listed(run, $runs)
),
own as (
    select run, step, loss, grad_norm, update_norm from steps semi join chosen using (run)
),
read_steps as (  -- how many steps hold what a detector reads
    select
        count(loss) as loss, count(grad_norm) as grad_norm, count(update_norm) as update_norm
    from own
),
per_step_tensors as (
    select
        run, step, count(rms_t) as rms_t, count(gss_share) as gss_share,
        count(update_ratio) as update_ratio
    from tensors semi join chosen using (run)
    group by run, step
),
read_tensors as (
    select
        count(*) filter (where rms_t > 0) as rms_t,
        count(*) filter (where gss_share > 0) as gss_share,
        count(*) filter (where update_ratio > 0) as update_ratio
    from per_step_tensors
),
per_step_heads as (
    select
        run, step, count(attn_entropy_norm) as attn_entropy_norm,
        count(attn_logit_max) as attn_logit_max
    from heads semi join chosen using (run)
    group by run, step
),
read_heads as (
    select
        count(*) filter (where attn_entropy_norm > 0) as attn_entropy_norm,
        count(*) filter (where attn_logit_max > 0) as attn_logit_max
    from per_step_heads
),
read_layers as (
    select count(distinct (run, step)) as act_kurtosis
    from layers semi join chosen using (run)
    where act_kurtosis is not null
),
names as (
    select unnest(['monitor_loss', 'skip_step', 'cusum_loss']) as detector, loss as steps_read from read_steps
    union all
    select
        unnest([
            'monitor_grad_norm', 'robust_grad_norm', 'spike_grad_norm', 'grad_norm_trend',
            'cusum_grad_norm'
        ]),
        grad_norm
    from read_steps
    union all select 'update_norm', update_norm from read_steps
    union all select 'relative_change', update_ratio from read_tensors
    union all select 'act_kurtosis', act_kurtosis from read_layers
    union all select 'rms_t', rms_t from read_tensors
    union all select 'gss_share', gss_share from read_tensors
    union all select 'entropy_collapse', attn_entropy_norm from read_heads
    union all select 'logit_growth', attn_logit_max from read_heads
),
onsets as (
    select distinct run, coalesce(onset, step) as onset
    from events semi join chosen using (run)
    where kind = 'spike' and metric = 'loss'
),
sizes as (
    select chosen.run, count(own.step) as steps
    from chosen left join own on own.run = chosen.run
    group by chosen.run
),
windows as (  -- of each spike, the recorded steps in which an alarm would have foretold it
    select o.run, o.onset, count(own.step) as width
    from onsets as o
    left join own on own.run = o.run and own.step >= o.onset - $horizon and own.step < o.onset
    group by all
),
rates as (  -- alarms of each detector in each run
    select n.detector, s.run, s.steps, count(a.step) as alarms
    from names as n cross join sizes as s
    left join alarms as a on a.run = s.run and a.detector = n.detector
    group by all
),
foretold as (
    select
        r.detector, w.run, w.onset, any_value(w.width) as width, any_value(r.steps) as n,
        any_value(r.alarms) as k, w.onset - min(a.step) as lead
    from windows as w
    join rates as r on r.run = w.run
    left join alarms as a
        on a.run = w.run and a.detector = r.detector
        and a.step >= w.onset - $horizon and a.step < w.onset
    group by r.detector, w.run, w.onset
),
chance as (  -- 1 − C(n − width, k) / C(n, k): k alarms on random steps, none twice
    select
        *,
        case
            when width = 0 then 0
            when k > n - width then 1
            else 1 - exp(
                lgamma(n - width + 1) - lgamma(n - width - k + 1) - lgamma(n + 1)
                + lgamma(n - k + 1)
            )
        end as random_hit
    from foretold
),
hits as (
    select
        detector, count(*) as spikes, count(lead) as hits, median(lead) as median_lead,
        sum(random_hit) as random_hits
    from chance
    group by detector
),
false_ones as (
    select a.detector, count(*) as false_alarms
    from alarms as a asof left join onsets as o on o.run = a.run and a.step < o.onset
    where o.onset is null or o.onset - a.step > $horizon
    group by a.detector
),
totals as (
    select
        detector, count(*) as runs, sum(steps)::bigint as steps, sum(alarms)::bigint as alarms
    from rates
    group by detector
),
final as (
    select
        t.detector, t.runs, t.steps, n.steps_read, coalesce(h.spikes, 0) as spikes, t.alarms,
        coalesce(h.hits, 0) as hits, coalesce(h.spikes - h.hits, 0) as misses, h.median_lead,
        coalesce(f.false_alarms, 0) as false_alarms,
        coalesce(1000 * f.false_alarms / nullif(t.steps, 0), 0) as false_per_1000,
        coalesce(h.random_hits, 0) as random_hits
    from totals as t
    join names as n using (detector)
    left join hits as h using (detector)
    left join false_ones as f using (detector)
    order by hits - random_hits desc, false_per_1000, detector
)
select * from final
