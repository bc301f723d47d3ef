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

    Which spike, who moved first, data or state, what it cost, and what replays have shown of it. It looks at the largest
    spike of the loss in the runs folder (`FORENSICS_RUNS`, else `runs`); set `RUN` and `STEP` below for another one.

    Order in time is not proof of cause: the last part says what was replayed.
    """)
    return


@app.cell
def _():
    import os

    import altair as alt

    from queries import connect
    from queries import run as query

    con = connect(os.environ.get("FORENSICS_RUNS", "runs"))
    RUN, STEP = None, None  # for example "demo", 400
    return RUN, STEP, alt, con, query


@app.cell
def _(RUN, STEP, con):
    spikes = con.sql(
        """
        select run, step, value, baseline, sigma, spike_kind, onset, recovered_at - step as steps_to_recover
        from events
        where kind = 'spike' and metric = 'loss' and ($run is null or run = $run) and ($step is null or step = $step)
        order by sigma desc nulls last
        """,
        params={"run": RUN, "step": STEP},
    ).df()
    assert len(spikes), "no spike of the loss is recorded: forensics demo makes a run with one"
    run, step = str(spikes.run[0]), int(spikes.step[0])
    spikes.head(20)
    return run, spikes, step


@app.cell
def _(mo, run, spikes, step):
    _s = spikes.iloc[0]
    mo.md(
        f"**{run}, step {step:,}: loss {_s.baseline:.3f} → {_s.value:.3f} nats/token,"
        f" {_s.sigma:.0f}σ, {_s.spike_kind}.**"
    )
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## The steps around it

    The line is the batch, the dots are its sequences. Dots apart from the rest point to the data, a whole cloud that
    rises to the state.
    """)
    return


@app.cell
def _(alt, con, query, run, step):
    around = query(con, "spike_neighbourhood", {"run": run, "step": step, "radius": 24}).to_pandas()
    dots = con.sql(
        """
        select s.step, s.slot, s.loss from sequences as s
        join lineage($run) as l on l.run = s.run and s.step >= l.first_step and s.step < l.last_step
        where s.step between $step - 24 and $step + 24
        limit 4000
        """,
        params={"run": run, "step": step},
    ).df()
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

    Which statistic left its own past (robust z over the steps [-512, -64)) first, and by how many steps before the spike.
    """)
    return


@app.cell
def _(con, query, run, step):
    moved = query(con, "first_to_move", {"run": run, "step": step, "top": 12}).to_pandas()
    moved
    return (moved,)


@app.cell
def _(alt, moved):
    _rows = moved.assign(what=moved.place.astype(str) + " " + moved.statistic.astype(str))
    alt.Chart(_rows).mark_point(shape="diamond", filled=True, size=80, color="#d55e00").encode(
        alt.X("lead:Q", scale=alt.Scale(reverse=True), title="steps before the spike"),
        alt.Y("what:N", sort=None, title=None),
        tooltip=["moved_at", "value", "baseline", "z"],
    ).properties(width=560)
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## What it read: the batch's sequences, worst first
    """)
    return


@app.cell
def _(con, query, run, step):
    query(con, "worst_sequences", {"run": run, "step": step, "top": 8}).to_pandas()[
        ["slot", "loss", "above_median", "repeat_share", "source", "document", "path"]
    ]
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## Second moments that were out of date just before it
    """)
    return


@app.cell
def _(con, query, run, step):
    query(con, "stale_tensors", {"run": run, "step": step, "top": 8}).to_pandas()
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## What it cost, and what replays have shown

    `excess` sums the loss above the baseline until recovery. Below it the forks whose window holds the spike, and what
    blame found (empty: `replay blame RUN --spike STEP`).
    """)
    return


@app.cell
def _(con, query, run, step):
    _costs = query(con, "spikes", {"run": run, "metric": "loss"}).to_pandas()
    _costs[_costs.step == step][["step", "spike_kind", "steps_to_recover", "excess"]]
    return


@app.cell
def _(con, run, step):
    forks = con.sql(
        """
        select fork, sentence, control_level, loss_fork - loss_control as loss_gap, logit_kl, effect, p, placebos
        from forks where parent = $run and first <= $step and last > $step
        """,
        params={"run": run, "step": step},
    ).df()
    forks
    return


@app.cell
def _(con, run, step):
    blame = con.sql(
        """
        select rank, step, slot, sequence, document, source, part, influence, replayed_effect
        from blame where run = $run and spike = $step order by rank
        """,
        params={"run": run, "step": step},
    ).df()
    blame
    return


if __name__ == "__main__":
    app.run()
