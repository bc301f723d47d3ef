"""Text as it may be shown: nothing in it can move a cursor, hide, or turn a line around.

visible("a\\u202eb")        # 'a⟨U+202E⟩b'
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


def visible(text: str) -> str:
    """Write every control, bidi and zero-width character as ⟨U+202E⟩; keep new lines and tabs."""
    return text if text.isascii() and text.isprintable() else text.translate(_SHOWN)


class _Shown(dict[int, str]):
    """Code point → what is drawn in its place, found out once for each."""

    def __missing__(self, n: int) -> str:
        c = chr(n)
        hidden = (
            unicodedata.category(c) in HIDDEN or n in BLANK or any(n in span for span in SELECTORS)
        )
        self[n] = f"⟨U+{n:04X}⟩" if hidden and c not in "\n\t" else c
        return self[n]


_SHOWN = _Shown()
