import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="A spike from first to last")


@app.cell
def _():
    import marimo as mo

    return (mo,)


@app.cell
def _(mo):
    mo.md(r"""
    # A spike from first to last

    This notebook follows one spike of the loss: what moved first, whether the data or the state
    caused it, what it cost, and what replays have shown. It takes the largest spike in the folder
    of runs (`FORENSICS_RUNS`, else `runs`); set `RUN` and `STEP` below for another one.

    What comes first in time need not be the cause: the last part shows what was replayed.
    """)
    return


@app.cell
def _():
    import altair as alt

    from queries.notebook import setup

    runs = setup()
    RUN, STEP = None, None  # for example "demo", 400
    return RUN, STEP, alt, runs


@app.cell
def _(RUN, STEP, runs):
    spikes = runs.sql(
        """
        select
            run, step, value, baseline, sigma, spike_kind, onset,
            recovered_at - step as steps_to_recover
        from events
        where kind = 'spike' and metric = 'loss'
            and ($run is null or run = $run) and ($step is null or step = $step)
        order by sigma desc nulls last
        """,
        run=RUN,
        step=STEP,
    )
    assert len(spikes), "no spike of the loss is recorded: forensics demo makes a run with one"
    run, step = str(spikes.run[0]), int(spikes.step[0])
    spikes.head(20)
    return run, spikes, step


@app.cell
def _(mo, run, spikes, step):
    _largest = spikes.iloc[0]
    mo.md(
        f"**{run}, step {step:,}: the loss rises from {_largest.baseline:.3f} to"
        f" {_largest.value:.3f} nats/token, {_largest.sigma:.0f} robust σ;"
        f" kind of spike: {_largest.spike_kind}.**"
    )
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## The steps around it

    The line is the loss of the batch, the dots are the losses of its sequences. If a few dots lie
    far above the others, these sequences are the likely cause; if all dots rise together, the
    state of the model is.
    """)
    return


@app.cell
def _(alt, run, runs, step):
    around = runs.query("spike_neighbourhood", run=run, step=step, radius=24)
    dots = runs.sql(
        """
        select step, slot, loss
        from sequences_along($run)
        where step between $step - 24 and $step + 24
        limit 4000
        """,
        run=run,
        step=step,
    )
    _x = alt.X("step:Q", scale=alt.Scale(zero=False))
    _line = (
        alt.Chart(around)
        .mark_line(color="#262730")
        .encode(_x, alt.Y("loss:Q", scale=alt.Scale(zero=False)))
    )
    _dots = (
        alt.Chart(dots)
        .mark_point(size=8, opacity=0.3)
        .encode(_x, alt.Y("loss:Q"), tooltip=["step", "slot", "loss"])
    )
    _norm = (
        alt.Chart(around).mark_line().encode(_x, alt.Y("grad_norm:Q", scale=alt.Scale(type="log")))
    )
    (_dots + _line).properties(width=640, height=180) & _norm.properties(width=640, height=90)
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## First to move

    The statistics that left their normal range, the first at the top, with the number of steps
    before the spike. A statistic's normal range is its own values in the steps [-512, -64) before
    the spike; it has left it where its robust z is beyond 6.
    """)
    return


@app.cell
def _(run, runs, step):
    moved = runs.query("first_to_move", run=run, step=step, top=12)
    moved
    return (moved,)


@app.cell
def _(alt, moved):
    _rows = moved.assign(row=moved.place.astype(str) + " " + moved.statistic.astype(str))
    alt.Chart(_rows).mark_point(shape="diamond", filled=True, size=80, color="#d55e00").encode(
        alt.X("lead:Q", scale=alt.Scale(reverse=True), title="steps before the spike"),
        alt.Y("row:N", sort=None, title=None),
        tooltip=["moved_at", "value", "baseline", "z"],
    ).properties(width=560)
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## The sequences of the batch with the highest loss
    """)
    return


@app.cell
def _(run, runs, step):
    runs.query("worst_sequences", run=run, step=step, top=8)[
        ["slot", "loss", "above_median", "repeat_share", "source", "document", "path"]
    ]
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## The tensors whose second moments were most out of date just before the spike
    """)
    return


@app.cell
def _(run, runs, step):
    runs.query("stale_tensors", run=run, step=step, top=8)
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## What the spike cost, and what replays have shown

    `excess` is the sum of the loss above the baseline until recovery. Then follow the forks whose
    window holds the spike, and the suspects that blame ranked. Where they are empty, nothing was
    replayed yet: `replay blame RUN --spike STEP` does it.
    """)
    return


@app.cell
def _(run, runs, step):
    _costs = runs.query("spikes", run=run, metric="loss")
    _costs[_costs.step == step][["step", "spike_kind", "steps_to_recover", "excess"]]
    return


@app.cell
def _(run, runs, step):
    forks = runs.sql(
        """
        select
            fork, sentence, control_level, loss_fork - loss_control as loss_gap, logit_kl, effect,
            p, placebos
        from forks
        where parent = $run and first <= $step and last > $step
        """,
        run=run,
        step=step,
    )
    forks
    return


@app.cell
def _(run, runs, step):
    blame = runs.sql(
        """
        select rank, step, slot, sequence, document, source, part, influence, replayed_effect
        from blame
        where run = $run and spike = $step
        order by rank
        """,
        run=run,
        step=step,
    )
    blame
    return


if __name__ == "__main__":
    app.run()
