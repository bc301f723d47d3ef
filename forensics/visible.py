"""Text as it may be shown: nothing in it can move a cursor, hide, or turn a line around.

visible("a\\u202eb")        # 'a⟨U+202E⟩b'
quoted("\\u00a0a\\n")        # "'⟨U+00A0⟩a⟨U+000A⟩'"
"""

from __future__ import annotations

import unicodedata

# Control, format (bidi, zero-width, tags), surrogate, line and paragraph separators.
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
BLANK = {
    0x034F,
    0x115F,
    0x1160,
    0x17B4,
    0x17B5,
    0x2800,
    0x3164,
    0xFFA0,
}  # letters and marks drawn as nothing
SELECTORS = (
    range(0x180B, 0x1810),
    range(0xFE00, 0xFE10),
    range(0xE0100, 0xE01F0),
)  # variation selectors


# Private and unassigned characters, which a font may have no shape for, and spaces but " ".
SHAPELESS = {"Co", "Cn", "Zs"}


def visible(text: str) -> str:
    """Write every control, bidi and zero-width character as ⟨U+202E⟩; keep new lines and tabs."""
    return text if text.isascii() and text.isprintable() else text.translate(_VISIBLE)


def quoted(text: str) -> str:
    """Write a token between quotation marks: no two tokens that differ look the same.

    New lines, tabs, spaces but " " and characters without a certain shape are written out, too.
    """
    return "'" + text.translate(_QUOTED) + "'"


def is_hidden(character: str) -> bool:
    """Return whether a character is drawn as nothing, or changes how others are drawn."""
    number = ord(character)
    return (
        unicodedata.category(character) in HIDDEN
        or number in BLANK
        or any(number in span for span in SELECTORS)
    )


class _Spelled(dict[int, str]):
    """Code point → what is drawn in its place, found out once for each."""

    def __init__(self, whole_tokens: bool) -> None:
        super().__init__()
        self.whole_tokens = whole_tokens

    def __missing__(self, number: int) -> str:
        character = chr(number)
        if self.whole_tokens:
            shapeless = unicodedata.category(character) in SHAPELESS and character != " "
            hidden = is_hidden(character) or shapeless
        else:
            hidden = is_hidden(character) and character not in "\n\t"
        self[number] = f"⟨U+{number:04X}⟩" if hidden else character
        return self[number]


_VISIBLE, _QUOTED = _Spelled(whole_tokens=False), _Spelled(whole_tokens=True)
