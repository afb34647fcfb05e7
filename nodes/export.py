# SPDX-License-Identifier: GPL-3.0-or-later
"""Export SODA as LoRA."""

from __future__ import annotations

import dataclasses
from typing import get_args

from comfy_api.latest import io

from ..soda_core.files import check_prefix
from ..soda_core.host import folders
from ..soda_core.host.export import export_adapter
from ..soda_core.interop.lora_settings import LoraSettings, Size
from ..soda_core.training.setting import settings_of
from .common import CATEGORY, SodaAdapterType, graph_metadata, ignore_base_check, saved_files, widget


def _size() -> io.Input:
    """What decides the size, each with its own value."""
    values = [name for name in get_args(Size) if name != "exact"]
    options = [io.DynamicCombo.Option(name, [widget(LoraSettings, name)]) for name in values]
    return io.DynamicCombo.Input(
        "by", options=[*options, io.DynamicCombo.Option("exact", [])], tooltip=settings_of(LoraSettings)["by"].help
    )


class SodaExportLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODAExportLoRA",
            display_name="Export SODA as LoRA",
            category=CATEGORY,
            description="Writes an adapter's change of its base model as a LoRA file for Load LoRA, diffusers and "
            "other programs, and says how much of the change that leaves out; or exactly, as full differences.",
            search_aliases=["soda", "save lora", "extract lora", "convert", "svd", "kohya", "diffusers", "locon"],
            is_output_node=True,
            inputs=[
                SodaAdapterType.Input("adapter", tooltip="From Load SODA Adapter, Train SODA or Merge."),
                io.Model.Input(
                    "model",
                    tooltip="The base model the adapter was trained on: the change is that of its weights.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="lora",
                    tooltip="Name of the file in the loras model folder, counted up: 'fox' gives "
                    "fox_00001_.safetensors. A sub-folder may stand in front (people/anna); '..' and absolute paths "
                    "are refused.",
                ),
                _size(),
                widget(LoraSettings, "naming"),
                widget(LoraSettings, "strength", min=-10.0, max=10.0),
                widget(LoraSettings, "mode"),
                widget(LoraSettings, "dtype"),
                ignore_base_check(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The base's CLIP, for adapters with text encoder layers (Train SODA makes none).",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                io.String.Output(display_name="saved_name", tooltip="Name of the file in the loras folder."),
                io.String.Output(
                    display_name="report", tooltip="What the file leaves out of the change, overall and layer by layer."
                ),
            ],
        )

    @classmethod
    def execute(cls, adapter, model, filename_prefix, by, ignore_base_check, clip=None, **settings) -> io.NodeOutput:
        check_prefix(filename_prefix)
        metadata = dict(adapter.metadata) | graph_metadata(cls.hidden)
        adapter = dataclasses.replace(adapter, metadata=metadata)
        made = export_adapter(model, clip, adapter, LoraSettings(**by, **settings), ignore_base_check)
        name = folders.save_lora(made, filename_prefix)
        text = made.report.text(name)
        return io.NodeOutput(name, text, ui={"text": (text,), **saved_files(folders.LORAS, name)})
