# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways in and out: other people's files, and adapters in other people's libraries (each in a module named after it)."""
