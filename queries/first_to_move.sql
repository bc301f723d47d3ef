/*
sentence = "Which statistic first left its own past, the steps [-512, -64), before a spike."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the spike" }
threshold = { type = "float", default = 6.0, meaning = "|z| that counts as outside" }
least = { type = "int", default = 16, low = 2, meaning = "steps that a baseline needs" }
top = { type = "int", default = 100, meaning = "rows at most" }

[columns]
moved_at = { unit = "step", meaning = "first step of [-64, 0] with |z| above the threshold" }
lead = { unit = "steps", meaning = "from there to the spike" }
kind = "head | tensor | layer | step"
place = "the head, tensor or layer"
statistic = "the column of its table"
value = "the statistic at moved_at"
baseline = "median of the statistic over the steps [-512, -64) before the spike"
z = { unit = "σ", meaning = "robust z at moved_at: `robust_z`" }
largest_z = { unit = "σ", meaning = "largest |z| up to the spike" }
steps_outside = { unit = "steps", meaning = "of the 65 up to the spike that are outside" }
baseline_steps = { unit = "steps", meaning = "in the baseline" }
*/
with span as (  -- the runs of the trajectory, each with the steps that are its own
    select run, first_step, last_step from lineage($run)
),
head_values as (
    unpivot (
        select
            step, 'layer ' || layer || ' head ' || head as place, attn_logit_max,
            attn_logit_spread, attn_entropy_mean, q_norm_max, k_norm_max
        from heads as h
        join span on span.run = h.run and h.step >= first_step and h.step < last_step
        where step >= $step - 512 and step <= $step
    ) on columns(* exclude (step, place)) into name statistic value x
),
tensor_values as (
    unpivot (
        select step, tensor as place, grad_rms, update_ratio, rms_t, staleness
        from tensors as t
        join span on span.run = t.run and t.step >= first_step and t.step < last_step
        where step >= $step - 512 and step <= $step
    ) on columns(* exclude (step, place)) into name statistic value x
),
layer_values as (
    unpivot (
        select
            step, 'layer ' || layer as place, resid_rms_out, resid_grad_rms, attn_out_rms,
            mlp_out_rms
        from layers as y
        join span on span.run = y.run and y.step >= first_step and y.step < last_step
        where step >= $step - 512 and step <= $step
    ) on columns(* exclude (step, place)) into name statistic value x
),
step_values as (
    unpivot (
        select step, 'whole model' as place, loss, grad_norm, logit_max, logz_max, output_entropy
        from steps as s
        join span on span.run = s.run and s.step >= first_step and s.step < last_step
        where step >= $step - 512 and step <= $step
    ) on columns(* exclude (step, place)) into name statistic value x
),
measured as (
    select 'head' as kind, place, statistic, step, x::double as x from head_values
    union all select 'tensor', place, statistic, step, x::double from tensor_values
    union all select 'layer', place, statistic, step, x::double from layer_values
    union all select 'step', place, statistic, step, x::double from step_values
),
past as (
    select
        kind, place, statistic, count(*) as steps, median(x) as middle, robust_scale(x) as scale
    from measured
    where step < $step - 64 and isfinite(x)
    group by kind, place, statistic
    having steps >= $least
),
watched as (
    select
        m.kind, m.place, m.statistic, m.step, m.x, p.middle, p.steps,
        robust_z(m.x, p.middle, p.scale) as z
    from measured as m
    join past as p on p.kind = m.kind and p.place = m.place and p.statistic = m.statistic
    where m.step >= $step - 64 and m.step <= $step
),
moved as (
    select
        kind, place, statistic, min(step) as moved_at, arg_min(x, step) as value,
        any_value(middle) as baseline, arg_min(z, step) as z, max(abs(z)) as largest_z,
        count(*) as steps_outside, any_value(steps) as baseline_steps
    from watched
    where abs(z) > $threshold
    group by kind, place, statistic
),
final as (
    select
        moved_at, $step - moved_at as lead, kind, place, statistic, value, baseline, z, largest_z,
        steps_outside, baseline_steps
    from moved
    order by moved_at, largest_z desc, kind, place, statistic
    limit $top
)
select * from final
