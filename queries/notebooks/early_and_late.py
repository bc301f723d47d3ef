import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Early against late forks")


@app.cell
def _():
    import marimo as mo

    return (mo,)


@app.cell
def _(mo):
    mo.md(r"""
    # Early against late forks

    How far does an alteration take a run, made early and made late? Every distance is fork − control, both run in
    lock-step from the same state, and is read beside the placebos: the same alteration on random other data.

    Early against late is confounded by the schedule: a step of a larger learning rate moves everything farther. So the
    distance stands beside the learning rate at the fork and over the placebos. `replay sweep` measures the same with an
    arm at one equal rate.
    """)
    return


@app.cell
def _():
    import os

    import altair as alt

    from queries import connect

    con = connect(os.environ.get("FORENSICS_RUNS", "runs"))
    PARENT = None  # for example "demo"; None: forks of every run
    return PARENT, alt, con


@app.cell
def _(PARENT, con):
    forks = con.sql(
        """
        with rates as (
            select f.fork, s.lr
            from forks as f join steps as s on s.run = f.parent and s.step = f.first
        )
        select
            f.parent, f.fork, f.first, f.last, f.sentence, f.control_bitwise as bitwise, r.lr, f.l2, f.logit_kl,
            f.loss_fork - f.loss_control as loss_gap, f.unseen_gap, f.effect, f.p, f.placebos,
            coalesce(f.time_to_reconverge::varchar, '> ' || (f.last - f.first)) as back_after
        from forks as f left join rates as r on r.fork = f.fork
        where f.run = f.fork and ($parent is null or f.parent = $parent)
        order by f.parent, f.first
        """,
        params={"parent": PARENT},
    ).df()
    assert len(forks), (
        "no fork is recorded: replay fork RUN --from A --to B --skip A:B --placebos 3 makes one"
    )
    forks
    return (forks,)


@app.cell
def _(forks, mo):
    _told = forks[forks.effect.notna()]
    _words = [
        f"{r.fork}: from state {r.first:,}, {r.effect:.2g}× the placebos' median (p = {r.p:.2g}, N"
        f" = {r.placebos})"
        for r in _told.itertuples()
    ]
    mo.md("\n".join(f"- {w}" for w in _words) or "No fork has a placebo: no effect is claimed.")
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## Over the placebos, against the state it was made at

    1 is as far as the same alteration of random other data. Size: the learning rate at the fork.
    """)
    return


@app.cell
def _(alt, forks):
    alt.Chart(forks[forks.effect.notna()]).mark_point(filled=True, opacity=1).encode(
        alt.X("first:Q", title="state it left at", scale=alt.Scale(zero=False)),
        alt.Y("effect:Q", title="distance over the placebos' median", scale=alt.Scale(type="log")),
        alt.Size("lr:Q", title="learning rate"),
        alt.Color("parent:N"),
        tooltip=["fork", "sentence", "effect", "p", "placebos", "back_after"],
    ).properties(width=600, height=220)
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## How the distance grows with the age of the fork

    Lines: forks. Grey: their placebos. A chaos fork's start was moved by one unit in the last place.
    """)
    return


@app.cell
def _(con, forks):
    growth = con.sql(
        """
        select d.run as fork, d.arm, regexp_replace(d.arm, '-[0-9]+$', '') as kind, d.step - f.first as age, d.l2, d.logit_kl
        from divergence as d join forks as f on f.run = d.run and f.fork = d.run
        where d.tensor = '' and list_contains($forks, d.run) and d.l2 > 0
        order by d.run, d.arm, age
        limit 4800
        """,
        params={"forks": forks.fork.tolist()},
    ).df()
    growth
    return (growth,)


@app.cell
def _(alt, growth):
    _colour = alt.Color(
        "kind:N",
        scale=alt.Scale(
            domain=["fork", "placebo", "chaos"], range=["#0072b2", "#8a8a8a", "#7b3fa0"]
        ),
    )
    alt.Chart(growth).mark_line().encode(
        alt.X("age:Q", title="steps since the fork"),
        alt.Y("l2:Q", title="‖θ − θ_control‖", scale=alt.Scale(type="log")),
        _colour,
        alt.StrokeDash("fork:N"),
        alt.Detail("arm:N"),
    ).properties(width=600, height=240)
    return


if __name__ == "__main__":
    app.run()
