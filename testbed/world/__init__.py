# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world of captioned pictures: emoji on backgrounds, in styles. What the demo's own base model knows.

``vocabulary`` says what there is and what is held out, ``scene`` draws lots and writes captions, ``render`` draws.

    python -m testbed.world sheet.png        a contact sheet
"""
