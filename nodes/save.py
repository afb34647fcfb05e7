# SPDX-License-Identifier: GPL-3.0-or-later
"""Save SODA Adapter."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

from ..soda_core.host import folders
from ..soda_core.host.pictures import from_image
from ..soda_core.report.inspection import picture
from .common import CATEGORY, SodaAdapterType, filename_prefix, graph_metadata, saved_files


class SodaSaveAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODASaveAdapter",
            display_name="Save SODA Adapter",
            category=CATEGORY,
            description="Writes an adapter to the soda model folder as safetensors, with everything a model manager "
            "reads. It is in the list of Load SODA Adapter right after. (Train SODA saves its own result.)",
            search_aliases=["soda", "save lora", "export adapter"],
            is_output_node=True,
            inputs=[
                SodaAdapterType.Input("adapter", tooltip="From Merge Subject+Style SODA, for example."),
                filename_prefix("merged"),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="A picture made with it, shown in the model library and kept beside the file. Without "
                    "one it is the drawing of Inspect SODA Adapter.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[io.String.Output(display_name="saved_name", tooltip="Name of the file in the soda folder.")],
        )

    @classmethod
    def execute(cls, adapter, filename_prefix, preview=None) -> io.NodeOutput:
        metadata = dict(adapter.metadata) | graph_metadata(cls.hidden)
        image = from_image(picture(adapter) if preview is None else preview)
        name = folders.save_adapter(dataclasses.replace(adapter, metadata=metadata), filename_prefix, image)
        return io.NodeOutput(name, ui=saved_files(folders.FOLDER, name))
