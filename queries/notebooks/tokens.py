import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Tokens against exposure")


@app.cell
def _():
    import marimo as mo

    return (mo,)


@app.cell
def _(mo):
    mo.md(r"""
    # Tokens against exposure

    Which tokens did the model never learn? *Fishing for Magikarp* (arXiv 2405.05417) guesses it
    from the embeddings of one final checkpoint. Here the order of the data is known, so each
    token's exposure is exact at every checkpoint: how often it was an input, how often a target,
    and from how many input positions some counted target could be reached.

    `forensics tokens RUN` fills the table that this notebook reads.
    """)
    return


@app.cell
def _():
    import altair as alt

    from queries.notebook import setup

    runs = setup()
    RUN = None  # for example "demo"; None: the first that has measured tokens
    return RUN, alt, runs


@app.cell
def _(RUN, runs):
    measured = runs.sql(
        """
        select
            run, step, count(*) as tokens, count(indicator) as measured,
            count(*) filter (exposure_in = 0 and exposure_out = 0) as never_shown
        from vocabulary
        where $run is null or run = $run
        group by run, step
        order by run, step
        """,
        run=RUN,
    )
    assert len(measured), "no token is measured: forensics tokens RUN"
    run = str(measured.run[0])
    step = int(measured[measured.run == run].step.max())
    measured
    return measured, run, step


@app.cell
def _(measured, mo, run, step):
    _latest = measured[(measured.run == run) & (measured.step == step)].iloc[0]
    mo.md(
        f"**{run}, state {step:,}: {_latest.never_shown:,} of {_latest.tokens:,} tokens were never"
        " shown to the model.**"
    )
    return


@app.cell
def _(run, runs, step):
    runs.sql(
        """
        select
            token, text, category, indicator, exposure_in, exposure_out, exposure_grad, documents,
            first_seen, last_seen, cause
        from vocabulary
        where run = $run and step = $step
        order by indicator nulls last, token
        limit 20
        """,
        run=run,
        step=step,
    )
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## Indicator against exposure

    A low indicator is suspect. Tokens at the left were never shown to the model. Low ones at the
    right were shown and did not learn, or their embeddings are short for another reason. At most
    4,800 tokens are drawn, those with the lowest indicator.
    """)
    return


@app.cell
def _(alt, run, runs, step):
    points = runs.sql(
        """
        select
            token, text, exposure_grad, ln(1 + exposure_grad) as log_exposure, indicator,
            coalesce(cause, 'none known') as cause
        from vocabulary
        where run = $run and step = $step and indicator is not null
        order by indicator
        limit 4800
        """,
        run=run,
        step=step,
    )
    alt.Chart(points).mark_point(filled=True, opacity=0.6).encode(
        alt.X("log_exposure:Q", title="log(1 + exposure)"),
        alt.Y("indicator:Q", scale=alt.Scale(zero=False)),
        alt.Color("cause:N"),
        alt.Shape("cause:N"),
        tooltip=["token", "text", "exposure_grad", "indicator", "cause"],
    ).properties(width=600, height=320)
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## Does the indicator agree with the exposure?

    At every checkpoint: Spearman's rank correlation of the indicator with the exposure, and the
    precision of the 2 % rule, which is the share of tokens that nothing had reached among those at
    or below the 2nd percentile of the indicator.
    """)
    return


@app.cell
def _(run, runs):
    known = runs.sql(
        """
        with ranked as (
            select
                step, exposure_grad, indicator,
                rank() over (partition by step order by exposure_grad) as by_exposure,
                rank() over (partition by step order by indicator) as by_indicator
            from vocabulary
            where run = $run and indicator is not null
        ),
        rule as (
            select step, quantile_cont(indicator, 0.02) as threshold from ranked group by step
        )
        select
            r.step, corr(by_exposure, by_indicator) as spearman,
            count(*) filter (indicator <= threshold) as candidates,
            count(*) filter (indicator <= threshold and exposure_grad = 0)
                / count(*) filter (indicator <= threshold)::double as precision
        from ranked as r
        join rule using (step)
        group by r.step
        order by r.step
        """,
        run=run,
    )
    known
    return


@app.cell
def _(mo):
    mo.md(r"""
    ## When were the rarest tokens trained?

    The indicator over the checkpoints, of the twelve tokens that the model was shown least, but at
    least once.
    """)
    return


@app.cell
def _(alt, run, runs, step):
    courses = runs.sql(
        """
        with rare as (
            select token
            from vocabulary
            where run = $run and step = $step and exposure_grad > 0
            order by exposure_grad, token
            limit 12
        )
        select v.step, v.token, v.text, v.indicator, v.exposure_grad
        from vocabulary as v
        join rare on rare.token = v.token
        where v.run = $run and v.indicator is not null
        order by v.token, v.step
        """,
        run=run,
        step=step,
    )
    alt.Chart(courses).mark_line(point=True).encode(
        alt.X("step:Q"),
        alt.Y("indicator:Q", scale=alt.Scale(zero=False)),
        alt.Color("token:N"),
        tooltip=["token", "text", "exposure_grad"],
    ).properties(width=600, height=220)
    return


if __name__ == "__main__":
    app.run()
