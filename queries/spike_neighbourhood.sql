/*
sentence = "The steps around a step: loss, gradient norm, largest logit, most out-of-date tensor."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the step in the middle" }
radius = { type = "int", default = 20, meaning = "steps before and after" }

[columns]
run = "the run or an ancestor: whose table the step stands in"
step = { unit = "step", meaning = "the step" }
offset = { unit = "steps", meaning = "after the step in the middle" }
loss = { unit = "nats/token", meaning = "loss of the batch" }
grad_norm = "gradient norm before clipping"
clip_scale = "factor that clipping multiplied the gradient by; 1: it did not clip"
lr = "learning rate"
attn_logit_max = "largest attention logit over all heads"
layer = "decoder block of that head"
head = "that head"
lowest_entropy = { unit = "nats", meaning = "smallest mean attention entropy of any head" }
rms_t = "largest rms_t over all tensors; alarm at 2.3 (arXiv 2304.13013)"
tensor = "that tensor"
logz_max = { unit = "nats", meaning = "largest logsumexp over the vocabulary" }
update = "what was done with the gradient: apply | hold | zero | none | skipped"
*/
with span as (
    select
        run, greatest(first_step, $step - $radius) as low,
        least(last_step, $step + $radius + 1) as high
    from lineage($run)
),
trajectory as (
    select s.*
    from steps as s
    join span on span.run = s.run and s.step >= span.low and s.step < span.high
),
attention as (
    select
        h.step,
        max(h.attn_logit_max) as attn_logit_max,
        arg_max(h.layer, h.attn_logit_max) as layer,
        arg_max(h.head, h.attn_logit_max) as head,
        min(h.attn_entropy_mean) as lowest_entropy
    from heads as h
    join span on span.run = h.run and h.step >= span.low and h.step < span.high
    group by h.step
),
optimizer as (
    select t.step, max(t.rms_t) as rms_t, arg_max(t.tensor, t.rms_t) as tensor
    from tensors as t
    join span on span.run = t.run and t.step >= span.low and t.step < span.high
    group by t.step
),
final as (
    select
        s.run, s.step, s.step - $step as "offset", s.loss, s.grad_norm, s.clip_scale, s.lr,
        a.attn_logit_max, a.layer, a.head, a.lowest_entropy, o.rms_t, o.tensor, s.logz_max,
        s.update
    from trajectory as s
    left join attention as a on a.step = s.step
    left join optimizer as o on o.step = s.step
    order by s.step
)
select * from final
