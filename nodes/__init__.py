# SPDX-License-Identifier: GPL-3.0-or-later
"""The pack's nodes, listed once."""

from comfy_api.latest import ComfyExtension, io

from ..soda_core.host import folders, leftovers
from .export import SodaExportLora
from .inspect import SodaInspectAdapter
from .load import SodaApplyAdapter, SodaLoadAdapter
from .merge import SodaMerge
from .save import SodaSaveAdapter
from .train import SodaTrain

NODES: list[type[io.ComfyNode]] = [
    SodaTrain,
    SodaLoadAdapter,
    SodaApplyAdapter,
    SodaMerge,
    SodaSaveAdapter,
    SodaExportLora,
    SodaInspectAdapter,
]


class SodaExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()
        leftovers.sweep_all()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
