with chosen as (
    select run from runs
    where trim($runs) in ('', '*') or list_contains(string_split(replace($runs, ' ', ''), ','), run)
),
ends as (  -- a ratio of RMS is a ratio of norms: every v has the same number of elements
    select
        run, step, max(layer) - min(layer) + 1 as layers,
        arg_min(resid_rms_in, layer)::double as first_in, arg_max(resid_rms_out, layer)::double as last_out,
        arg_max(resid_grad_rms, layer)::double as last_grad, arg_min(resid_grad_rms, layer)::double as first_grad
    from layers semi join chosen using (run)
    where step = $step
    group by run, step
),
ratios as (
    select *, last_out / nullif(first_in, 0) as forward_ratio, first_grad / nullif(last_grad, 0) as backward_ratio
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
