"""What corpora, tokens and names may hold, and that none of it acts."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import app
from app.show import accent, code, escaped, strong
from app.tokens import level, shown
from forensics.visible import visible

FOLDER = Path(app.__file__).parent
MARKDOWN = {"markdown", "write", "caption", "metric", "table", "error", "warning", "info", "success", "exception", "title",
            "header", "subheader", "latex", "badge", "toast"}  # fmt: skip
LABELLED = {
    "tabs",
    "expander",
    "status",
    "progress",
    "radio",
    "pills",
    "segmented_control",
    "button",
    "checkbox",
    "toggle",
}


@pytest.mark.parametrize("c", ["\u202e", "\u202a", "\u2066", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u061c", "\x1b", "\x07", "\x7f",
                               "\x85", "\u2028", "\u3164", "\U000e0041", "\ufe0f", "\ud800"])  # fmt: skip
def test_what_cannot_be_seen_is_shown_by_its_number(c):
    assert visible(f"a{c}b") == f"a⟨U+{ord(c):04X}⟩b"


def test_text_of_every_script_stays_as_it_is():
    for text in ("plain", "naïve café", "日本語", "שלום", "مرحبا", "🙂 ∑ θ", "tab\tnew\nline", "e\u0301"):
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


def calls():
    """Every call of a method named like one of Streamlit's, in the app's files: (file, line, name, the call)."""
    for path in sorted(FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield path.relative_to(FOLDER), node.lineno, node.func.attr, node


def test_no_page_uses_a_command_that_reads_markdown():
    streamlit = [(str(p), line, name) for p, line, name, call in calls()
                 if name in MARKDOWN and isinstance(call.func.value, ast.Name) and call.func.value.id == "st"]  # fmt: skip
    assert streamlit == []


def test_labels_are_our_own_words():
    """A label is Markdown: a literal, or an f-string or a name that a reader has looked at (numbers and column names)."""
    for path, line, name, call in calls():
        if name in LABELLED and call.args and isinstance(call.func.value, ast.Name) and call.func.value.id == "st":
            first = call.args[0]
            assert isinstance(first, (ast.Constant, ast.JoinedStr, ast.List, ast.Attribute)), f"{path}:{line} {name}"


def test_no_chart_has_a_field_called_image_and_html_comes_from_one_place():
    for path in FOLDER.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert '"image"' not in text and "'image'" not in text, path
        assert "unsafe_allow_html" not in text and "unsafe_allow_javascript" not in text, path
        if path.name not in ("show.py", "main.py"):
            assert "st.html(" not in text, f"{path}: what a page says goes through app.show"
