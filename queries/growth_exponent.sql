/*
sentence = "How fast the residual stream grows per block, and the gradient on its way back."

[parameters]
runs = { type = "runs", default = "", meaning = "names with commas between; empty or *: all runs" }
step = { type = "int", default = 0, meaning = "the step; 0: at initialisation" }

[columns]
run = "the run"
step = { unit = "step", meaning = "the step" }
layers = "number of decoder blocks, L"
forward.unit = "1/block"
forward.meaning = """λ = log(‖v′‖/‖v‖) / L of the residual stream v from before the first block to \
after the last; OLMo 2 (arXiv 2501.00656): about −0.03, OLMo-0424 0.09 to 0.12"""
backward.unit = "1/block"
backward.meaning = """λ of the gradient from the last block's output to the first's, L − 1 blocks; \
NULL with one block"""
first_in = "√mean x² of the stream entering the first block"
last_out = "√mean x² of the stream leaving the last block"
last_grad = "√mean g² of the gradient arriving at the last block's output"
first_grad = "√mean g² of the gradient arriving at the first block's output"
*/
with chosen as (
    select run from runs where is_listed(run, $runs)
),
ends as (  -- a ratio of RMS is a ratio of norms: every v has the same number of elements
    select
        run, step, max(layer) - min(layer) + 1 as layers,
        arg_min(resid_rms_in, layer)::double as first_in,
        arg_max(resid_rms_out, layer)::double as last_out,
        arg_max(resid_grad_rms, layer)::double as last_grad,
        arg_min(resid_grad_rms, layer)::double as first_grad
    from layers semi join chosen using (run)
    where step = $step
    group by run, step
),
ratios as (
    select
        *, last_out / nullif(first_in, 0) as forward_ratio,
        first_grad / nullif(last_grad, 0) as backward_ratio
    from ends
),
final as (
    select
        run, step, layers,
        if(forward_ratio > 0, ln(forward_ratio) / layers, null) as forward,
        if(backward_ratio > 0, ln(backward_ratio) / nullif(layers - 1, 0), null) as backward,
        first_in, last_out, last_grad, first_grad
    from ratios
    order by run
)
select * from final
