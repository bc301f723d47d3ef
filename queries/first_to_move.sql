/*
sentence = "Who moved first before a spike: the first alarms, without those that only drift."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the spike" }
threshold = { type = "float", default = 6.0, meaning = "|z| that counts as outside" }
least = { type = "int", default = 16, low = 2, meaning = "steps that a baseline needs" }
top = { type = "int", default = 100, meaning = "rows at most" }

[columns]
moved_at = { unit = "step", meaning = "where it left its own past, as `first_alarms` defines it" }
lead = { unit = "steps", meaning = "from there to the spike" }
kind = "head | tensor | layer | step"
place = "the head, tensor or layer"
statistic = "attn_logit_max | rms_t | staleness | resid_grad_rms | grad_norm | loss"
value = "the statistic at moved_at"
baseline = "median of the statistic over the steps [-512, -64) before the spike"
z = { unit = "σ", meaning = "robust z at moved_at: `robust_z`" }
*/
with first_alarms as (
-- include first_alarms.sql
),
final as (
    select
        step as moved_at, lead, kind,
        case kind
            when 'head' then 'layer ' || layer || ' head ' || head
            when 'layer' then 'layer ' || layer
            when 'tensor' then tensor
            else 'whole model'
        end as place,
        statistic, value, baseline, z
    from first_alarms
    where not drifting
    order by lead desc, abs(z) desc, kind, place, statistic
)
select * from final
