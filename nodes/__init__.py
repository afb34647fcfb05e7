# SPDX-License-Identifier: GPL-3.0-or-later
"""The pack's nodes, listed once."""

from comfy_api.latest import ComfyExtension, io

from ..soda_core.host import board, examples, folders, leftovers
from .export import SodaExportLora
from .inspect import SodaInspectAdapter
from .load import SodaApplyAdapter, SodaLoadAdapter
from .merge import SodaMerge
from .save import SodaSaveAdapter
from .stack import SodaStack
from .train import SodaTrain
from .training_settings import SodaTrainingSettings

NODES: list[type[io.ComfyNode]] = [
    SodaTrain,
    SodaTrainingSettings,
    SodaLoadAdapter,
    SodaApplyAdapter,
    SodaStack,
    SodaMerge,
    SodaSaveAdapter,
    SodaExportLora,
    SodaInspectAdapter,
]


class SodaExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()
        leftovers.sweep_all()
        examples.install()
        board.register_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
