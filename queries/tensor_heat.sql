/*
sentence = "The tensors that moved first around a spike: rms_t, staleness against their own past."

[parameters]
run = { type = "run", meaning = "the run" }
step = { type = "int", meaning = "the spike" }
before = { type = "int", default = 64, meaning = "steps before the spike" }
after = { type = "int", default = 32, meaning = "steps after the spike" }
least = { type = "int", default = 16, low = 2, meaning = "steps that a baseline needs" }
top = { type = "int", default = 8, low = 1, meaning = "rows, each a tensor and a statistic" }

[columns]
step = { unit = "step", meaning = "the step" }
offset = { unit = "steps", meaning = "after the spike, − ½: where the step's rectangle begins" }
offset2 = { unit = "steps", meaning = "after the spike, + ½: where the rectangle ends" }
tensor = "the tensor's name"
statistic = "rms_t | staleness"
place = "rank of the row: 1 moved first"
value = "the statistic at the step"
baseline = "median of the value over the steps [-512, -64) before the spike"
z = { unit = "σ", meaning = "robust z of the value against those steps: `robust_z`" }
level = "how many of 3, 6, 10, 20, 40 |z| reaches, with the sign of z"
*/
with trajectory as (
    select step, tensor, rms_t::double as rms_t, staleness::double as staleness
    from tensors_along($run)
    where step >= $step - 512 and step <= $step + $after
),
names as (
    select distinct tensor from trajectory
),
numbers as (
    select tensor, 2 * row_number() over (order by tensor) as number from names
),
numbered as (
    select trajectory.*, numbers.number
    from trajectory join numbers on numbers.tensor = trajectory.tensor
),
measured as (  -- an even row is a tensor's rms_t, the odd one after it its staleness
    select step, number as row, rms_t as x from numbered
    union all
    select step, number + 1, staleness from numbered
),
-- include shared/heat.sql
paired as (
    select *, lead(z) over (partition by row order by step) as next_z
    from scored
    where step <= $step + 1
),
moved as (  -- a row has moved when two steps in a row are beyond 6σ, or the spike's own step is
    select
        row,
        min(step) filter (where abs(z) >= 6 and (abs(next_z) >= 6 or step = $step)) as moved_at,
        max(abs(z)) as largest
    from paired
    where step <= $step
    group by row
),
chosen as (  -- the first to move on top; of those that moved together, the farthest
    select *, row_number() over (order by moved_at nulls last, largest desc, row) as place
    from moved
    qualify place <= $top
),
final as (
    select
        step, "offset", offset2, numbers.tensor,
        if(scored.row % 2 = 0, 'rms_t', 'staleness') as statistic, chosen.place, x as value,
        baseline, z, level
    from scored
    join chosen on chosen.row = scored.row
    join numbers on numbers.number = scored.row - scored.row % 2
    order by place, step
)
select * from final
