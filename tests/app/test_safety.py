"""What corpora, tokens and names may hold, and that none of it acts."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import app
from app.safe_html import accent, code, escaped, spoken, strong
from app.tokens import level, shown
from forensics.visible import visible

FOLDER = Path(app.__file__).parent
MARKDOWN = {
    "markdown",
    "write",
    "write_stream",
    "caption",
    "metric",
    "table",
    "error",
    "warning",
    "info",
    "success",
    "exception",
    "title",
    "header",
    "subheader",
    "latex",
    "badge",
    "toast",
    "divider",
}
OURS = {
    ("caption", "safe_html"),
    ("table", "data"),
    ("table", "pa"),
    ("header", "data"),
}  # the same names, of other things
# commands whose label is Markdown, and where it stands
LABELLED = dict.fromkeys(
    (
        "tabs",
        "expander",
        "popover",
        "status",
        "spinner",
        "radio",
        "pills",
        "segmented_control",
        "button",
        "form_submit_button",
        "download_button",
        "link_button",
        "checkbox",
        "toggle",
        "text_input",
        "number_input",
        "text_area",
        "selectbox",
        "multiselect",
        "slider",
        "select_slider",
        "date_input",
        "time_input",
        "file_uploader",
        "color_picker",
        "feedback",
        "dialog",
        "camera_input",
    ),
    0,
) | {"page_link": 1, "link": 1, "progress": 1, "offer": 3, "launcher": 3, "pick": 0, "switch": 0}
OPTIONS = {"radio", "pills", "segmented_control", "switch"}  # the second argument is Markdown too
INTEGERS = {
    "slot",
    "layer",
    "head",
}  # columns and fields of the selection that are whole numbers, whatever holds them
# Names in labels, helps and options that a reader has looked at: our own words, or the catalog's.
LOOKED_AT = {
    ("navigation.py", "label"),  # of `link`: each caller is looked at here
    ("jobs.py", "label"),  # of `offer` and `launcher`: each caller is looked at here
    ("views/forks/fork.py", "label"),  # of `_run_button`, whose callers are in that file
    ("controls.py", "label"),  # of `pick` and `switch`: so are theirs
    ("controls.py", "list(names)"),
    ("views/forks/build.py", "label"),  # of a dictionary that stands right above
    ("views/forks/build.py", "meaning"),
    ("views/forks/build.py", "field.label"),  # declared with the interventions
    ("views/forks/build.py", "field.help or None"),
    ("views/forks/matrix.py", "MEASURES"),
    ("views/batch/text.py", "COLOURS"),
    ("views/sql/page.py", "parameter"),  # a parameter's name and meaning, from queries/*.sql
    ("views/sql/page.py", "its.meaning"),
    ("views/forks/page.py", "PARTS"),
}


@pytest.mark.parametrize(
    "c",
    [
        "\u202e",
        "\u202a",
        "\u2066",
        "\u200b",
        "\u200d",
        "\ufeff",
        "\u00ad",
        "\u061c",
        "\x1b",
        "\x07",
        "\x7f",
        "\x85",
        "\u2028",
        "\u3164",
        "\U000e0041",
        "\ufe0f",
        "\ud800",
    ],
)
def test_what_cannot_be_seen_is_shown_by_its_number(c):
    assert visible(f"a{c}b") == f"a⟨U+{ord(c):04X}⟩b"


def test_text_of_every_script_stays_as_it_is():
    for text in (
        "plain",
        "naïve café",
        "日本語",
        "שלום",
        "مرحبا",
        "🙂 ∑ θ",
        "tab\tnew\nline",
        "e\u0301",
    ):
        assert visible(text) == text


@given(st.text())
def test_escaped_text_holds_no_markup_of_its_own(text):
    made = escaped([text, strong(text), accent(text), code(text)])
    for tag in ("<b>", "</b>", '<span class="accent">', "</span>", "<code>", "</code>"):
        made = made.replace(tag, "", 1)
    assert "<" not in made and ">" not in made


def test_tokens_show_new_lines_and_emptiness_and_their_strength_follows_the_loss():
    assert shown("a\nb\t") == "a↵\nb→\t"
    assert shown("") == "∅"
    assert shown("\u202e") == "⟨U+202E⟩"
    assert [level(x, 512)[0] for x in (0.0, 0.9, 3.2, 6.2, 50.0)] == [0, 1, 3, 6, 6]
    assert not level(6.2, 512)[1] and level(6.3, 512)[1]  # ln 512 = 6.24: worse than guessing
    assert level(None, 512) == (0, False) and level(float("nan"), 512) == (6, True)


def faults(text, file="x.py"):
    """What of a file's source could set Markdown from a name, a path or a text: one line each."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Dict):  # options that are handed on
            helps = [
                value
                for key, value in zip(node.keys, node.values)
                if isinstance(key, ast.Constant) and key.value == "help"
            ]
            found += [
                f"{file}:{node.lineno} help: {ast.unparse(each)}"
                for each in helps
                if not _ours(each, file)
            ]
        if not isinstance(node, ast.Call):
            continue
        name, of = _called(node.func)
        where = f"{file}:{node.lineno} {of + '.' if of else ''}{name}"
        if name in MARKDOWN and of and (name, of) not in OURS:
            found.append(f"{where}: a command that reads Markdown")
        given = {k.arg: k.value for k in node.keywords}
        labels = [given.get("help")] if of else []
        if name in LABELLED and (of or name == "link"):
            at = LABELLED[name]
            labels += [
                node.args[at] if len(node.args) > at else given.get("label") or given.get("text")
            ]
            labels += (
                [node.args[1] if len(node.args) > 1 else given.get("options")]
                if name in OPTIONS
                else []
            )
        found += [
            f"{where}: {ast.unparse(each)}"
            for each in labels
            if each is not None and not _ours(each, file)
        ]
    return found


def _called(function):
    """(its name, the source of what it is called on)."""
    if isinstance(function, ast.Attribute):
        return function.attr, ast.unparse(function.value)
    return (function.id if isinstance(function, ast.Name) else ""), ""


def _ours(node, file):
    """Whether an expression can only be our own words and numbers."""
    if isinstance(node, ast.JoinedStr):
        return all(_ours(part, file) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return (
            _of_numbers(node.format_spec)
            or _last_name(node.value) in INTEGERS
            or _ours(node.value, file)
        )
    if isinstance(node, (ast.List, ast.Tuple)):
        return all(_ours(each, file) for each in node.elts)
    if isinstance(node, ast.IfExp):
        return _ours(node.body, file) and _ours(node.orelse, file)
    if isinstance(node, ast.Call):
        name, of = _called(node.func)
        if of == "formatting" and name != "listed":
            return True  # numbers as words
    return isinstance(node, ast.Constant) or (file, ast.unparse(node)) in LOOKED_AT


def _last_name(node):
    """`slot` of slot, row.slot and row["slot"]."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return node.slice.value
    return getattr(node, "attr", getattr(node, "id", None))


def _of_numbers(spec):
    """Whether a format refuses text: `{step:,}`, `{step:d}`, `{loss:.3f}`."""
    text = (
        "".join(v.value for v in spec.values if isinstance(v, ast.Constant))
        if spec is not None
        else ""
    )
    try:
        format("text", text)
    except ValueError:
        return True
    return False


SOURCES = {
    str(p.relative_to(FOLDER)): p.read_text(encoding="utf-8") for p in sorted(FOLDER.rglob("*.py"))
}


@pytest.mark.parametrize("file", SOURCES)
def test_no_page_reads_markdown_and_every_label_is_our_own_words(file):
    assert faults(SOURCES[file], file) == []


def test_each_name_that_was_looked_at_is_still_there():
    for file, source in LOOKED_AT:
        assert any(
            ast.unparse(node) == source
            for node in ast.walk(ast.parse(SOURCES[file]))
            if isinstance(node, ast.expr)
        ), (file, source)


@pytest.mark.parametrize(
    "code",
    [
        "left.markdown(path)",
        "st.write(x)",
        "columns[0].caption('a')",
        "st.columns(2)[1].metric('a', 1)",
        "st.sidebar.table(rows)",
        "columns[0].button(name)",
        "form.form_submit_button(label)",
        "st.button(f'Open {run}')",
        "st.button(f'{run:>8}')",
        "st.text_input(run)",
        "st.expander(f'{path}')",
        "st.tabs(names)",
        "st.tabs(['a', run])",
        "st.progress(0.5, text)",
        "st.progress(0.5, text=run)",
        "st.page_link(page, label=run)",
        "link('batch', path)",
        "link('batch', label=path)",
        "st.number_input('n', help=run)",
        "st.radio('which', names)",
        "st.pills('which', options=names)",
        "st.segmented_control('which', [run])",
        "st.spinner(run)",
        "st.button(formatting.listed(names))",
        "st.button('a' if x else run)",
        "st.button('a' + run)",
        "st.dialog(run)",
        "options = {'help': path}",
        "st.button(slot)",
        "st.button(f'{row[name]}')",
    ],
)
def test_a_label_from_a_name_is_found_whatever_it_is_called_on(code):
    assert len(faults(code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "st.button('Open')",
        "st.button(f'Step {step:,}')",
        "c.button(f'{x:.3f} and {formatting.count(n)}')",
        "safe_html.caption(path)",
        "data.table(name)",
        "st.tabs(['a', 'b'])",
        "st.code(path)",
        "st.text(path)",
        "link('batch', f'Batch {step:,}')",
        "st.button('a' if x else 'b', help='why')",
        "st.button(f'slot {slot}')",
        """st.button(f"L{row.layer}.H{row['head']}")""",
    ],
)
def test_our_own_words_and_numbers_are_no_fault(code):
    assert faults(code) == []


def test_no_chart_has_a_field_called_image_and_html_comes_from_one_place():
    for path in FOLDER.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert '"image"' not in text and "'image'" not in text, path
        assert "unsafe_allow_html" not in text and "unsafe_allow_javascript" not in text, path
        if path.name not in ("safe_html.py", "main.py"):
            assert "st.html(" not in text, f"{path}: what a page says goes through app.safe_html"


def test_what_a_command_sets_between_backticks_is_code_and_a_lone_one_is_text():
    parts = spoken("try `forensics doctor <b>` or `x`.")
    assert parts == [
        "try ",
        code("forensics doctor <b>"),
        " or ",
        code("x"),
        ".",
    ]
    assert escaped(parts).count("<code>") == 2
    assert "&lt;b&gt;" in escaped(parts)
    assert spoken("a ` b") == ["a ` b"]
