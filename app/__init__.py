"""The Streamlit app: look, click, fork, understand. `forensics app`.

`start` is the server, `entry/streamlit_app.py` the script it runs, `main.frame` the row of pages on
top of each page.

How a page is written — a file in `app/pages/`, named in `pages.TITLES`; it is registered because it
exists:

    from app import data, show, words
    from app.charts import batch as charts, theme           # your module of templates
    from app.pages import chosen_run, guarded, link
    from app.selection import goto, picked, shows

    def page() -> None:
        selection = chosen_run()                            # the URL's run, or the newest; draws the picker
        if selection is None:                               # it has said what is missing
            return
        found = data.table("worst_sequences", run=selection.run, step=selection.step)
        if not found.num_rows:                              # empty state: what is missing, the command filled in
            show.nothing("No sequence was recorded at this step.", f"replay fork {selection.run}
            --from …") return
        show.verdict(f"Step {words.count(selection.step)}: …", "First to move: ",
        show.accent("L2.H0"), " …",
                     hedge=["Order in time, not proof of cause."])      # numbers, step, hedge; always first
        theme.draw(charts.losses(show.dark()), {"losses": found}, key="losses", on_select=clicked)
        show.frame(found)

    def clicked() -> None:                                  # a callback: it only writes the URL
        mark = picked(st.session_state["losses"], "cell", "slot")
        if mark:
            goto(slot=int(mark["slot"]))

    guarded(page)

* **Selection.** `selection.here()` parses and checks the URL (`Selection`: run, fork, first, last,
  spike, step, layer,
  head, slot, position, token, tensor, document, metric, query, sql, part). Callbacks write it with
  `goto(…)` and do nothing else; `pages.link(page, label, …)` links to another page with the rest
  kept but for what only the page that is left has (part, kind, query, …); no bind, no switch_page.
  What a page shows though the URL does not name it (the newest run, its largest spike) it tells
  with `shows(…)`: `goto` and `link` then name it too, and `shown()` is both together. A widget's
  state is set from the URL before the widget is made; its callback writes the URL. A field that is
  missing: add it to the dataclass (numbers `int | None`), and to WITHIN if it is chosen inside
  another. A row of a table that was clicked: `picked_row(event, items)`; the chosen one has a ● and
  stands in the table's key.
* **Data.** `data.rows(query, …)` and `data.table(query, …)` run a named query (`queries/*.sql`,
  `catalog.toml`), cached
  until a manifest changes; `data.recorded("events", run)` is a short table whole; `data.sql(text)`
  is the user's, in the sandbox; `data.headers()`, `header(run)`, `lineage(run)`, `reached(run)`
  read run.json and manifests only.
* **Charts.** `app/charts/<family>.py`: functions of `dark` under `@cached` that return
  `template(chart, dark, height=…)`;
  every channel with `type=`; data by `named("name")`; selections drawn as data (a one-row table for
  the chosen mark), since Streamlit ignores `selection_point(value=…)`. Over some hundred marks:
  `canvas=True`; over 20,000: roll up in SQL. Charts of one column share `theme.labels()` for y, so
  that their steps lie under each other. What only the data know (rows of an axis, bounds) stands in
  a template as {"expr": name} and is put in by `theme.filled(template, name=…)`. A chart that is
  clicked often stands in an `@st.fragment`.
* **Words.** `words.count`, `loss`, `gap`, `ratio`, `sigma`, `share`. "First to move", "before";
  never "caused"
  without a replay.
* **Safety.** Corpus text, tokens, paths, and names of runs, files, tensors go only through
  `show.verdict`, `note`, `nothing`,
  `heading`, `caption` (escaped), `show.frame`, `st.text`/`st.code` of `visible(…)`, `theme.draw`,
  or `tokens.tokens`. Never through st.markdown, write, caption, metric, table, error/warning,
  labels, tabs, expander, radio, pills.
* **Long work.** `work.start(run, "replay", ["fork", …])` runs a command as a process of its own
  with log and progress
  in the run's folder; it survives a closed tab. `work.listed(run)`, `work.stop(…)`, and the panel
  `work.panel(run)`.
* **Tokens.** `tokens.tokens(texts, levels, underlined, key=…, on_click=callback)`; see its
  docstring.
* **Tests.** `tests/app/`: `app_page("spikes", run="demo")` is AppTest on a page, `browser` and
  `open_page` a real
  Chromium that fails on page errors, Vega errors, charts of zero height and requests outside
  127.0.0.1.
"""
