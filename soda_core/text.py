# SPDX-License-Identifier: GPL-3.0-or-later
"""Text from files and people, as it may stand in a line of a log or of an error."""

from __future__ import annotations

#: Longer texts are shown without their middle.
SHOWN = 200


def half_character(text: str) -> int | None:
    """Place of the first half of a character (a lone surrogate) in a text: no file can hold one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def printable(text: str) -> str:
    """One line without control characters, which a terminal would obey: they are spelled out (``\\n``, ``\\x1b``)."""
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]}…{text[-SHOWN // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
