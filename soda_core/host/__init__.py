# SPDX-License-Identifier: GPL-3.0-or-later
"""Glue to ComfyUI: the only place in the core that imports it."""
