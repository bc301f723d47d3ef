-- For heat maps: how far each row of the map is from its own past, the steps [-512, -64) before
-- the spike. Reads `measured` (step, row, x, …), which must hold those steps; gives `scored`.
past as (
    select row, median(x) as middle, robust_scale(x) as scale
    from measured
    where step < $step - 64 and isfinite(x)
    group by row
    having count(*) >= $least
),
scored as (
    select
        measured.*, past.middle as baseline, robust_z(measured.x, past.middle, past.scale) as z,
        z_level(z) as level, (measured.step - $step)::double - 0.5 as "offset",
        (measured.step - $step)::double + 0.5 as offset2
    from measured
    join past on past.row = measured.row
    where measured.step >= $step - $before and measured.x is not null
),
