/*
sentence = "Who moved first before a spike, and stayed away from its own past until the spike."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the spike" }
threshold = { type = "float", default = 6.0, meaning = "|z| that counts as outside" }
least = { type = "int", default = 16, low = 2, meaning = "steps that a baseline needs" }
top = { type = "int", default = 100, meaning = "rows at most" }

[columns]
step.unit = "step"
step.meaning = """first of two steps in a row in [-64, 0] outside, and beyond its own drift, of \
the excursion that lasts, with gaps of at most 8 steps, until the spike; the spike's own step \
counts alone. Beyond its drift: further from its level at the start of the watch than its level \
went in any 64 of the 256 steps before, by more than `threshold` of its noise about it"""
lead = { unit = "steps", meaning = "from there to the spike" }
kind = "head | tensor | layer | step"
layer = "decoder block, of a head or a layer"
head = "query head, of a head"
tensor = "name, of a tensor"
statistic = "attn_logit_max | rms_t | staleness | resid_grad_rms | grad_norm | loss"
value = "the statistic at that step"
baseline = "median of the statistic over the steps [-512, -64) before the spike"
z.unit = "σ"
z.meaning = """robust z at that step: `robust_z`; outside is the threshold, or more where 2 % of \
the baseline lie beyond it"""
drifting = """it was outside from the first step of the watch, or never went beyond where its own \
drift could have taken it: no first mover"""
*/
with span as (  -- the runs of the trajectory, each with the steps that are its own
    select run, first_step, last_step from lineage($run)
),
tensor_rows as (  -- the watch is [-64, 0], and one step more for a pair
    select step, tensor, rms_t, staleness
    from tensors as t
    join span on span.run = t.run and t.step >= first_step and t.step < last_step
    where step >= $step - 512 and step < $step + 2
),
tensor_names as (
    select distinct tensor from tensor_rows
),
tensor_numbers as (
    select tensor, row_number() over (order by tensor) as number from tensor_names
),
numbered as (
    select rows.*, numbers.number
    from tensor_rows as rows join tensor_numbers as numbers on numbers.tensor = rows.tensor
),
measured as materialized (  -- a row's number: kind · 10^12 + layer · 10^6 + head, or the tensor's
    select step, layer * 1000000::bigint + head as row, attn_logit_max::double as x
    from heads as h
    join span on span.run = h.run and h.step >= first_step and h.step < last_step
    where step >= $step - 512 and step < $step + 2
    union all
    select step, 1000000000000 + layer * 1000000::bigint, resid_grad_rms
    from layers as y
    join span on span.run = y.run and y.step >= first_step and y.step < last_step
    where step >= $step - 512 and step < $step + 2
    union all
    select step, 2000000000000 + number, rms_t from numbered
    union all
    select step, 3000000000000 + number, staleness from numbered
    union all
    select step, unnest([4000000000000, 5000000000000]), unnest([grad_norm, loss])
    from steps as s
    join span on span.run = s.run and s.step >= first_step and s.step < last_step
    where step >= $step - 512 and step < $step + 2
),
past as (
    select
        row, robust_scale(x) as scale, quantile_cont(x, [0.01, 0.5, 0.99]) as tail
    from measured
    where step < $step - 64 and isfinite(x)
    group by row
    having count(*) >= $least
),
limits as (  -- a row that is often out is judged by its own tail: what 2 % of its baseline exceed
    select
        row, scale, tail[2] as middle,
        greatest(tail[3] - tail[2], tail[2] - tail[1]) / nullif(scale, 0) as tail_z
    from past
),
watched as materialized (
    select
        m.row, m.step, m.x, b.middle, robust_z(m.x, b.middle, b.scale) as z,
        greatest($threshold, coalesce(b.tail_z, 0)) as limit_z
    from measured as m
    join limits as b on b.row = m.row
    where m.step >= $step - 64 and m.x is not null
),
outside as (
    select row from watched where abs(z) >= limit_z
),
candidates as materialized (  -- most rows never leave their past: the others are few
    select * from watched semi join outside using (row)
),
levels as (  -- of each candidate, every 8 steps before the watch
    select m.row, (m.step - $step) // 8 as bucket, median(m.x) as level
    from measured as m semi join outside using (row)
    where m.step >= $step - 320 and m.step < $step - 64 and isfinite(m.x)
    group by all
),
moves as (  -- how far the level rose and fell within 64 steps
    select
        *, level - min(level) over latest as rise, max(level) over latest - level as fall,
        last_value(level) over (
            partition by row order by bucket rows between current row and unbounded following
        ) as latest_level
    from levels
    window latest as (partition by row order by bucket rows between 8 preceding and current row)
),
drifts as (
    select
        v.row, max(v.rise) as rise, max(v.fall) as fall, any_value(v.latest_level) as level,
        robust_sigma(m.x - v.level) as noise
    from moves as v
    join measured as m on m.row = v.row and (m.step - $step) // 8 = v.bucket
    where isfinite(m.x)
    group by v.row
),
placed as (
    select
        c.*, abs(z) >= limit_z as out,
        abs(z) >= limit_z and coalesce(
            if(z > 0, x - d.level - d.rise, d.level - x - d.fall) > $threshold * d.noise
                or not isfinite(x),
            true
        ) as far
    from candidates as c left join drifts as d on d.row = c.row
),
paired as (  -- one step beyond the limit is common among thousands of rows; two in a row are not
    select
        *, out and lead(out) over by_step and sign(z) = sign(lead(z) over by_step) as pair,
        far and lead(far) over by_step and sign(z) = sign(lead(z) over by_step) as far_pair
    from placed
    window by_step as (partition by row order by step)
),
away as (  -- at least half-way out, and the next step of the row that is
    select
        row, step,
        coalesce(lead(step) over (partition by row order by step), $step) as following
    from candidates
    where step <= $step and abs(z) >= 0.5 * limit_z
),
gaps as (  -- what came back, and stayed back for more than 8 steps before the spike, is over
    select row, max(step) filter (where following - step > 8) as over_at
    from away
    group by row
),
lasting as (  -- the spike's own step counts alone: what follows it may be over at once
    select
        p.*, pair or (p.step = $step and out) as moved,
        far_pair or (p.step = $step and far) as moved_far
    from paired as p
    left join gaps as g on g.row = p.row
    where p.step <= $step and p.step > coalesce(g.over_at, -1)
),
alarmed as (
    select row, step, x as value, middle as baseline, z, not moved_far as drifted
    from lasting
    where moved or moved_far
    qualify row_number() over (partition by row order by moved_far desc, step) = 1
),
named as (
    select
        *, row // 1000000000000 as sort, row % 1000000000000 // 1000000 as layer_number,
        row % 1000000 as number
    from alarmed
),
recorded as (  -- the first step of the baseline that any run of the trajectory can have
    select min(greatest(first_step, $step - 512)) as first from span
),
final as (
    select
        a.step, $step - a.step as lead,
        ['head', 'layer', 'tensor', 'tensor', 'step', 'step'][a.sort + 1] as kind,
        if(a.sort <= 1, a.layer_number, null) as layer, if(a.sort = 0, a.number, null) as head,
        n.tensor,
        ['attn_logit_max', 'resid_grad_rms', 'rms_t', 'staleness', 'grad_norm', 'loss'][a.sort + 1]
            as statistic,
        a.value, a.baseline, a.z,
        a.drifted or a.step <= greatest($step - 64, (select first from recorded)) as drifting
    from named as a
    left join tensor_numbers as n on n.number = a.number and a.sort in (2, 3)
    order by drifting, lead desc, abs(a.z) desc, kind, layer, head, n.tensor, statistic
    limit $top
)
select * from final
