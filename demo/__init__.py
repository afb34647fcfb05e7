# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: a subject and a style, trained and merged; and what shows them (page, workflows, pictures of graphs)."""
