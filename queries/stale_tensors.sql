/*
sentence = "The tensors whose second moment was most out of date just before a step."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the spike" }
within = { type = "int", default = 8, meaning = "steps before the spike that are looked at" }
top = { type = "int", default = 20, meaning = "tensors at most" }

[columns]
tensor = "the tensor's name"
rms_t = "largest finite rms_t in those steps"
nonfinite = { unit = "steps", meaning = "of those whose rms_t or staleness is NaN or infinite" }
rms_t_at = { unit = "step", meaning = "where it was largest" }
lead = { unit = "steps", meaning = "from there to the spike" }
alarm = "rms_t reached 2.3 (arXiv 2304.13013), or was not finite"
staleness = "largest ‖g̃‖ / √Σ v̂ in those steps; about 1 when healthy"
staleness_at = { unit = "step", meaning = "where it was largest" }
gss_share = { unit = "share", meaning = "largest share of elements with g̃² > 5000·v̂" }
unseen_share = { unit = "share", meaning = "elements never touched, at the last step" }
grad_norm = "gradient norm before clipping, at the last step"
*/
with span as (
    select
        run, greatest(first_step, $step - $within) as low, least(last_step, $step + 1) as high
    from lineage($run)
),
watched as (
    select t.*
    from tensors as t
    join span on span.run = t.run and t.step >= span.low and t.step < span.high
),
final as (
    select
        tensor,
        max(finite(rms_t)) as rms_t,
        count(*) filter (where not isfinite(rms_t) or not isfinite(staleness)) as nonfinite,
        arg_max(step, finite(rms_t)) as rms_t_at,
        $step - arg_max(step, finite(rms_t)) as lead,
        max(rms_t) >= 2.3 as alarm,
        max(finite(staleness)) as staleness,
        arg_max(step, finite(staleness)) as staleness_at,
        max(finite(gss_share)) as gss_share,
        arg_max(unseen_share, step) as unseen_share,
        arg_max(grad_norm, step) as grad_norm
    from watched
    group by tensor
    order by rms_t desc nulls last, staleness desc nulls last, tensor
    limit $top
)
select * from final
