# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is in the world, and what the base model never saw.

A *glyph* is one emoji by its Unicode name; a *class* is the word a caption says for it. A subject to personalise is a
held-out glyph of a known class, as "my dog" is an unseen dog. ``TUNING`` subjects and styles may be used to choose
settings; ``REPORTED`` ones are for final figures only.
"""

from __future__ import annotations

#: class -> glyphs the base model is trained on
CLASSES: dict[str, dict[str, str]] = {
    "dog": {"dog face": "🐶", "dog": "🐕"},
    "cat": {"cat face": "🐱", "cat": "🐈"},
    "bear": {"bear": "🐻", "koala": "🐨"},
    "bird": {"bird": "🐦", "owl": "🦉"},
    "fish": {"fish": "🐟", "blowfish": "🐡"},
    "flower": {"blossom": "🌼", "tulip": "🌷"},
    "car": {"automobile": "🚗", "taxi": "🚕"},
    "house": {"house": "🏠", "castle": "🏰"},
}

#: held-out subjects: glyph name -> (class, emoji)
TUNING_SUBJECTS: dict[str, tuple[str, str]] = {
    "black cat": ("cat", "🐈\u200d⬛"),
    "tropical fish": ("fish", "🐠"),
    "sunflower": ("flower", "🌻"),
}
REPORTED_SUBJECTS: dict[str, tuple[str, str]] = {
    "poodle": ("dog", "🐩"),
    "panda": ("bear", "🐼"),
    "parrot": ("bird", "🦜"),
    "racing car": ("car", "🏎"),
}
SUBJECTS = TUNING_SUBJECTS | REPORTED_SUBJECTS

#: styles the base model is trained on; "flat" is what a picture is when its caption names no style
STYLES = ("flat", "pixel art", "ink drawing", "neon", "watercolour", "halftone", "mosaic", "crayon")
TUNING_STYLES = ("blueprint",)
REPORTED_STYLES = ("sepia print", "thermal camera", "stained glass")
HELD_OUT_STYLES = TUNING_STYLES + REPORTED_STYLES

#: plain backgrounds and their colours (sRGB)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 58, 52),
    "yellow": (247, 205, 62),
    "green": (86, 166, 84),
    "blue": (58, 112, 206),
    "purple": (142, 78, 176),
    "white": (242, 242, 238),
}
BACKGROUNDS = (*COLOURS, "sunset", "striped", "checkered")

#: every glyph by name, with its class
GLYPHS: dict[str, tuple[str, str]] = {
    name: (kind, emoji) for kind, glyphs in CLASSES.items() for name, emoji in glyphs.items()
} | SUBJECTS
