"""The Streamlit app: look, click, fork, understand. `forensics app`.

`start` is the server, `entry/streamlit_app.py` the script it runs, `main.frame` the row of pages on
top of each page.

How a page is written — a file `app/views/<page>.py`, or a folder with `page.py`; it is on the row
on top because it has a TITLE (`app.navigation`):

    from app import data, formatting, safe_html, theme
    from app.navigation import chosen_run
    from app.selection import goto, picked
    from app.views.batch import charts                  # your module of templates

    TITLE, ORDER = "Batch", 3                           # ORDER: its place in the row

    def page() -> None:
        selection = chosen_run()                        # the URL's run, or the newest
        if selection is None:                           # what is missing has been drawn
            return
        rows = data.table("worst_sequences", run=selection.run, step=selection.step)
        if not rows.num_rows:                           # what is missing, and what makes it
            safe_html.nothing("No sequence was recorded at this step. This command does:",
                              f"replay fork {selection.run} --from …")
            return
        safe_html.verdict(                              # always first: numbers, step, hedge
            f"Step {formatting.count(selection.step)}: …", "First to leave its normal range: ",
            safe_html.accent("L2.H0"), " …",
            hedge=["What moved first is not thereby the cause. …"])
        theme.draw(charts.losses(safe_html.dark()), {"losses": rows}, key="losses",
                   on_select=clicked)
        safe_html.frame(rows)

    def clicked() -> None:                              # a callback: it only writes the URL
        mark = picked(st.session_state["losses"], "cell", "slot")
        if mark:
            goto(slot=int(mark["slot"]))

* **Selection.** `selection.here()` parses and checks the URL (`Selection`: run, fork, first, last,
  spike, step, layer, head, slot, position, token, tensor, document, metric, query, sql, part).
  Callbacks write it with `goto(…)` and do nothing else; `navigation.link(page, label, …)` links to
  another page, with all that is chosen but what only this page has (part, kind, query, …); no bind,
  no switch_page. What a page shows though the URL does not name it (the newest run, its largest
  spike) it tells with `shows(…)`: `goto` and `link` then name it too, and `shown()` is both
  together. A widget's state is set from the URL before the widget is made (`controls.pick`,
  `controls.switch`); its callback writes the URL. A field that is missing: add it to the dataclass
  (numbers `int | None`), and to WITHIN if it is chosen inside another. A row of a table that was
  clicked: `picked_row(event, items)`; the chosen one has a ● and stands in the table's key.
* **Data.** `data.rows(query, …)` and `data.table(query, …)` run a named query (`queries/*.sql`),
  cached until a manifest changes; `data.recorded("events", run)` is a short table whole;
  `data.sql(text)` is the user's, in the sandbox; `data.headers()`, `header(run)`, `lineage(run)`,
  `reached(run)` read run.json and manifests only. `documents.read(ForkResult, path)` and
  `documents.documents(run, "sweep")` are what commands kept.
* **Charts.** `app/views/<page>/charts.py`: functions of `dark` under `@cached` that return
  `template(chart, dark, height=…)`; every channel with `type=`; data by `named("name")`; selections
  drawn as data (a one-row table for the chosen mark), since Streamlit ignores
  `selection_point(value=…)`. Over some hundred marks: `canvas=True`; over 20,000: roll up in SQL.
  Charts of one column share `theme.labels()` for y, so that their steps lie under each other. What
  only the data know (rows of an axis, bounds) stands in a template as {"expr": name} and is put in
  by `theme.filled(template, name=…)`. A chart that is clicked often stands in an `@st.fragment`.
* **Words.** `formatting.count`, `loss`, `gap`, `ratio`, `sigma`, `share`. A page says who did what,
  with number and unit, to someone who has never seen the tool; never "caused" without a replay.
  No code reads a sentence: what is decided is a field.
* **Safety.** Corpus text, tokens, paths, and names of runs, files, tensors go only through
  `safe_html.verdict`, `note`, `nothing`, `heading`, `caption` (escaped), `safe_html.frame`,
  `st.text`/`st.code` of `visible(…)`, `theme.draw`, or `tokens.tokens`. Never through st.markdown,
  write, caption, metric, table, error/warning, labels, tabs, expander, radio, pills.
* **Long work.** `jobs.start(run, "replay", ["fork", …])` runs a command as a process of its own
  with log and progress in the run's folder; it survives a closed tab. `jobs.offer(…)` draws what is
  missing, the command and its button; `jobs.listed(run)`, `jobs.stop(…)`, and `jobs.panel(run)`.
* **Tokens.** `tokens.tokens(texts, levels, underlined, key=…, on_click=callback)`.
* **Tests.** `tests/app/`: `app_page("spikes", run="demo")` is AppTest on a page, `open_page` a real
  Chromium that fails on page errors, Vega errors, charts of zero height and requests outside
  127.0.0.1.
"""
