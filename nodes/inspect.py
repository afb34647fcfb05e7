# SPDX-License-Identifier: GPL-3.0-or-later
"""Inspect SODA Adapter."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..soda_core.host.apply import check_base
from ..soda_core.host.progress import ProgressBar
from ..soda_core.report.base_check import summary, table
from ..soda_core.report.inspection import metadata_text, overview, picture, rows_of
from .common import CATEGORY, SodaAdapterType


class SodaInspectAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODAInspectAdapter",
            display_name="Inspect SODA Adapter",
            category=CATEGORY,
            description="Shows what an adapter does: on the node a summary by groups of blocks, as outputs a picture "
            "of every layer's spectral shift and rotation angles, and everything its file says about itself.",
            search_aliases=["soda", "adapter info", "lora info", "metadata", "spectrum"],
            is_output_node=True,
            inputs=[
                SodaAdapterType.Input("adapter", tooltip="From Load SODA Adapter, Train SODA or Merge."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connect a base model to run the base check against it: how well each layer's spectral "
                    "shift is reproduced on these weights.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Shift and rotation angles per layer."),
                io.String.Output(display_name="metadata", tooltip="The file's metadata as text."),
                io.String.Output(
                    display_name="summary",
                    tooltip="What the node shows, as Markdown: facts, and how far each group of blocks is turned and "
                    "shifted.",
                ),
            ],
        )

    @classmethod
    def execute(cls, adapter, model=None) -> io.NodeOutput:
        rows = rows_of(adapter, ProgressBar(len(adapter.layers)).advance)
        image, shown = picture(adapter, rows), overview(adapter, rows)
        text = metadata_text(adapter)
        if model is not None:
            report = check_base(model, adapter)
            text += f"\n\n{summary(report)}\n\n{table(report)}"
            shown += f"\n\n{summary(report)}"
        return io.NodeOutput(image, text, shown, ui=ui.PreviewText(shown))
