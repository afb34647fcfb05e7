# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapters in other people's libraries; each module needs the library it is named after."""
