-- What the losses before $step let one expect of it. Reads `span` (run, first_step, last_step); gives
-- `steps_before` (baseline): of a step in a recorded spike the spike's baseline, else the centre of
-- the step's own band, which no recorded spike before it enters; NULL where no band can be.
spiked as (  -- the steps of recorded spikes of the loss
    select
        e.onset as first, coalesce(e.recovered_at, e.step + 1) as last, e.baseline
    from events as e
    join span on span.run = e.run and e.step >= first_step and e.step < last_step
    where kind = 'spike' and metric = 'loss'
),
before as (
    select step, loss as x
    from steps as s
    join span on span.run = s.run and s.step >= first_step and s.step < last_step
    where step < $step and isfinite(loss)
        and not exists (from spiked where s.step >= first and s.step < last)
),
-- include shared/band.sql
steps_before as (
    select
        coalesce(
            (select any_value(baseline) from spiked where $step >= first and $step < last), centre
        ) as baseline
    from band
),
