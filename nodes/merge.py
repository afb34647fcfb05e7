# SPDX-License-Identifier: GPL-3.0-or-later
"""Merge Subject+Style SODA."""

from __future__ import annotations

from inspect import signature
from typing import get_args

from comfy_api.latest import io, ui

from ..soda_core.host.apply import weight_lookup
from ..soda_core.interference import interference
from ..soda_core.merge import Magnitude, MergeMethod, merge
from ..soda_core.report.merge import interference_report
from .common import CATEGORY, SodaAdapterType, adapter_output, blocks, strength

#: of the function, which the command has too
_DEFAULTS = {name: parameter.default for name, parameter in signature(merge).parameters.items()}


def _strength(name: str, of: str) -> io.Input:
    return strength(
        name,
        f"How much of the {of} goes into the result; 1 = as trained (default), 0 = none. Lower the one that "
        "drowns the other.",
    )


class SodaMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODAMerge",
            display_name="Merge Subject+Style SODA",
            category=CATEGORY,
            description="Combines a subject and a style adapter into one, without any training: my subject in my "
            "style. Takes seconds and reports how much the two get in each other's way, layer by layer.",
            search_aliases=["soda", "merge lora", "combine adapters", "subject style", "ziplora", "b-lora"],
            inputs=[
                SodaAdapterType.Input("subject", tooltip="Adapter trained on pictures of one subject."),
                SodaAdapterType.Input("style", tooltip="Adapter trained on pictures in one style."),
                _strength("subject_strength", "subject"),
                _strength("style_strength", "style"),
                io.Combo.Input(
                    "method",
                    options=list(get_args(MergeMethod)),
                    default=_DEFAULTS["method"],
                    tooltip="delta (the paper, default because it takes any two adapters of one base): adds both "
                    "changes to the base weights. normalised: that sum, as large as the larger of the two in every "
                    "layer. geodesic: adds the rotations' logarithms, so the result is again a rotation, as small as "
                    "its parents where their factor sizes are equal. parts: the subject's rotation with the style's "
                    "shift; for a style trained with 'shift only'. projection: takes the subject off the style's main "
                    "inputs, then adds both. tsv: the main directions of both, made independent; exports well as a "
                    "LoRA.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connect the base model to measure the exact interference of the two changes. Without it "
                    "the report compares rotations and shifts only.",
                ),
                blocks("subject_blocks", "the subject"),
                blocks("style_blocks", "the style"),
                io.Float.Input(
                    "balance",
                    default=_DEFAULTS["balance"],
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Between subject (0) and style (1), on top of the two strengths; 0.5 = as they are "
                    "(default). How large the whole is on the way says magnitude.",
                ),
                io.Combo.Input(
                    "magnitude",
                    options=list(get_args(Magnitude)),
                    default=_DEFAULTS["magnitude"],
                    optional=True,
                    tooltip="The size of the merge along the balance. constant: what one loses the other gains "
                    "(default, because 0.5 then changes nothing). orthofuse: each alone at its end, both whole in the "
                    "middle; its authors recommend a balance of 0.6. mean norm (geodesic only): in each layer as large "
                    "as the two are on average.",
                ),
            ],
            outputs=[
                adapter_output("The merged adapter, for Apply, Save or Inspect."),
                io.String.Output(
                    display_name="report",
                    tooltip="How much the two interfere, as Markdown: by blocks, the layers where they meet most, "
                    "and a verdict with strengths to try.",
                ),
            ],
        )

    @classmethod
    def execute(cls, subject, style, model=None, **options) -> io.NodeOutput:
        merged = merge(subject, style, **options)
        look_up = None if model is None else weight_lookup(model, subject, style)
        rows = interference(subject, style, look_up, merged)
        text = interference_report(subject, style, rows, merged)
        return io.NodeOutput(merged, text, ui=ui.PreviewText(text))
