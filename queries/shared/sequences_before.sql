-- How the sequences of the 64 steps before $step lie. Reads `span` (run, first_step, last_step); gives
-- `sequences_before` (middle, scale): one definition of how far apart a sequence stands.
sequences_before as (
    select median(finite(loss)) as middle, robust_sigma(loss) as scale
    from sequences as s
    join span on span.run = s.run and s.step >= first_step and s.step < last_step
    where step >= $step - 64 and step < $step and isfinite(loss)
),
