# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapter files as somebody would write them who means harm, and the tools to write more."""

from .file import Adapter, pack, unpack
from .monsters import DOCUMENTS, MONSTERS, ODDITIES, TINY_BOMB

__all__ = ["DOCUMENTS", "MONSTERS", "ODDITIES", "TINY_BOMB", "Adapter", "pack", "unpack"]
