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

    How far does an intervention move a run when it is made early, and how far when it is made late?
    Every distance is that of the fork from its control, which runs in step with it from the same
    state. It is compared with the placebos: the same intervention on random other data.

    The learning-rate schedule confounds early and late: a step at a larger learning rate moves
    everything farther. So each distance is shown over that of the placebos, beside the learning
    rate at the fork. `replay sweep` measures the same with an arm at one equal rate.
    """)
    return


@app.cell
def _():
    import altair as alt

    from queries.notebook import setup

    runs = setup()
    PARENT = None  # for example "demo"; None: forks of every run
    return PARENT, alt, runs


@app.cell
def _(PARENT, runs):
    forks = runs.sql(
        """
        with rates as (
            select f.fork, s.lr
            from forks as f
            join steps as s on s.run = f.parent and s.step = f.first
        )
        select
            f.parent, f.fork, f.first, f.last, f.sentence, f.control_bitwise as bitwise, r.lr, f.l2,
            f.logit_kl, f.loss_fork - f.loss_control as loss_gap, f.unseen_gap, f.effect, f.p,
            f.placebos,
            coalesce(f.time_to_reconverge::varchar, '> ' || (f.last - f.first)) as back_after
        from forks as f
        left join rates as r on r.fork = f.fork
        where f.run = f.fork and ($parent is null or f.parent = $parent)
        order by f.parent, f.first
        """,
        parent=PARENT,
    )
    assert len(forks), (
        "no fork is recorded: replay fork RUN --from A --to B --skip A:B --placebos 3 makes one"
    )
    forks
    return (forks,)


@app.cell
def _(forks, mo):
    _lines = [
        f"- {fork.fork}, made at state {fork.first:,}, ended {fork.effect:.2g} times as far from"
        f" its control as the median of its {fork.placebos} placebos (p = {fork.p:.2g})."
        for fork in forks[forks.effect.notna()].itertuples()
    ]
    mo.md("\n".join(_lines) or "No fork has a placebo, so no effect can be claimed.")
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## Distance over the placebos, by the state at which the fork was made

    At 1 a fork has moved as far as the same intervention on random other data. The size of a point
    is the learning rate at the fork.
    """)
    return


@app.cell
def _(alt, forks):
    alt.Chart(forks[forks.effect.notna()]).mark_point(filled=True, opacity=1).encode(
        alt.X("first:Q", title="state at which the fork was made", scale=alt.Scale(zero=False)),
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

    Blue lines are forks, grey lines their placebos, violet lines their chaos forks, whose start was
    moved by one unit in the last place.
    """)
    return


@app.cell
def _(forks, runs):
    growth = runs.sql(
        """
        select
            d.run as fork, d.arm, regexp_replace(d.arm, '-[0-9]+$', '') as kind,
            d.step - f.first as age, d.l2, d.logit_kl
        from divergence as d
        join forks as f on f.run = d.run and f.fork = d.run
        where d.tensor = '' and list_contains($forks, d.run) and d.l2 > 0
        order by d.run, d.arm, age
        limit 4800
        """,
        forks=forks.fork.tolist(),
    )
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
