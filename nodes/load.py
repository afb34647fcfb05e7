# SPDX-License-Identifier: GPL-3.0-or-later
"""Load SODA Adapter and Apply SODA Adapter."""

from __future__ import annotations

from comfy_api.latest import io

from ..soda_core.host import folders
from ..soda_core.host.apply import changes
from .common import CATEGORY, HOOKS, SodaAdapterType, adapter_output, blocks, strength_inputs

MODEL = io.Model.Input(
    "model", tooltip="The base model the adapter was trained on. It is not changed; the output is a patched copy."
)
CLIP = io.Clip.Input(
    "clip",
    optional=True,
    tooltip="Passed through, unless the adapter has text encoder layers (Train SODA makes none).",
)
PATCHED = (
    io.Model.Output(display_name="MODEL", tooltip="The model with the adapter applied."),
    io.Clip.Output(display_name="CLIP", tooltip="The text encoder with the adapter applied."),
)
TRIGGER = io.String.Output(
    display_name="trigger_phrase", tooltip="The phrase the adapter was trained with; put it in the prompt."
)


class SodaLoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODALoadAdapter",
            display_name="Load SODA Adapter",
            category=CATEGORY,
            description="Loads a SODA adapter from the soda model folder and patches MODEL (and CLIP) with it. The "
            "change is computed from the untouched base weights, so several adapters and LoRAs may be chained in any "
            "order.",
            search_aliases=["soda", "lora", "adapter", "load lora", "personalization", "dreambooth"],
            inputs=[
                MODEL,
                io.Combo.Input(
                    "adapter_name",
                    options=folders.adapter_names(),
                    tooltip="A file in models/soda (or your extra soda folders). Trained and saved ones appear by "
                    "themselves; press R for files you copied there.",
                ),
                *strength_inputs(),
                CLIP,
                blocks("blocks", "the adapter"),
            ],
            outputs=[
                *PATCHED,
                adapter_output("The adapter itself, for Merge, Inspect or Apply."),
                TRIGGER,
                HOOKS,
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str, **_: object) -> str:
        """A retrained file of the same name is read again."""
        if not isinstance(adapter_name, str):  # it comes through a link, which the host watches itself
            return ""
        return folders.version_of(adapter_name)

    @classmethod
    def execute(
        cls, model, adapter_name, strength_model, strength_clip, mode, ignore_base_check, clip=None, blocks=""
    ) -> io.NodeOutput:
        adapter = folders.load_adapter(adapter_name)
        change = changes(model, clip, adapter, strength_model, strength_clip, mode, ignore_base_check, blocks)
        return io.NodeOutput(*change.patched(), adapter, adapter.trigger_phrase, change.hooks())


class SodaApplyAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODAApplyAdapter",
            display_name="Apply SODA Adapter",
            category=CATEGORY,
            description="Applies an adapter that comes through the graph, fresh from training or merging.",
            search_aliases=["soda", "apply adapter", "apply lora", "lora model loader"],
            inputs=[
                MODEL,
                SodaAdapterType.Input("adapter", tooltip="From Train SODA, Merge Subject+Style SODA or Load SODA."),
                *strength_inputs(),
                CLIP,
                blocks("blocks", "the adapter"),
            ],
            outputs=[
                *PATCHED,
                TRIGGER,
                HOOKS,
            ],
        )

    @classmethod
    def execute(
        cls, model, adapter, strength_model, strength_clip, mode, ignore_base_check, clip=None, blocks=""
    ) -> io.NodeOutput:
        change = changes(model, clip, adapter, strength_model, strength_clip, mode, ignore_base_check, blocks)
        return io.NodeOutput(*change.patched(), adapter.trigger_phrase, change.hooks())
