# SPDX-License-Identifier: GPL-3.0-or-later
"""SODA Stack."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..soda_core.host import folders
from ..soda_core.host.apply import Changes, changes
from .common import CATEGORY, HOOKS, blocks, ignore_base_check, mode, strength
from .load import CLIP, MODEL, PATCHED

#: Adapters that one node takes. (Chain two nodes for more.)
MOST = 8


def _row(number: int) -> list[io.Input]:
    """One adapter's inputs, and the switch that brings the next one's.

    Rows are nested, the next one inside its switch: the front end keeps what stands outside of a switch that is turned,
    where a number of rows to choose from would empty them all.
    """
    inputs = [
        io.Combo.Input(
            f"adapter_{number}",
            options=folders.adapter_names(),
            tooltip="A file in models/soda (or your extra soda folders).",
        ),
        io.Boolean.Input(
            f"on_{number}", default=True, tooltip="Off leaves this adapter out and keeps its values (on by default)."
        ),
        strength(f"model_{number}", "How much of this adapter the MODEL gets: 0 = nothing, 1 = as trained (default)."),
        strength(f"clip_{number}", "The same for the text encoder; Train SODA adapts none."),
        blocks(f"blocks_{number}", "this adapter", optional=False),  # optional ones come behind the switch below
    ]
    if number < MOST:
        inputs.append(
            io.DynamicCombo.Input(
                f"more_{number + 1}",
                options=[io.DynamicCombo.Option("no", []), io.DynamicCombo.Option("yes", _row(number + 1))],
                tooltip="yes brings the inputs of one adapter more (8 in all).",
            )
        )
    return inputs


def _rows(values: dict[str, Any], number: int = 1) -> list[dict[str, Any]]:
    """The adapters of a node, whose inputs are nested."""
    rows = [{name: values.get(f"{name}_{number}") for name in ("adapter", "on", "model", "clip", "blocks")}]
    more = values.get(f"more_{number + 1}")
    return rows + (_rows(more, number + 1) if isinstance(more, dict) and f"adapter_{number + 1}" in more else [])


class SodaStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODAStack",
            display_name="SODA Stack",
            category=CATEGORY,
            description="Loads up to eight adapters on one node, each with a switch, its own strengths and block "
            "strengths. Every change is computed from the untouched base weights, so their order does not matter.",
            search_aliases=["soda", "lora stack", "multi lora", "power lora loader", "stack adapters", "many adapters"],
            inputs=[MODEL, CLIP, mode(), ignore_base_check(), *_row(1)],
            outputs=[
                *PATCHED,
                HOOKS,
                io.String.Output(
                    display_name="trigger_phrases", tooltip="The phrases of the adapters that are on, with commas."
                ),
                io.String.Output(
                    display_name="loaded",
                    tooltip="A line for each adapter that is on: name, strengths, trigger phrase.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> str:
        """A retrained file of the same name is read again."""
        names = [row["adapter"] for row in _rows(values) if row["on"] is not False]
        return "\n".join(folders.version_of(name) for name in names if isinstance(name, str))

    @classmethod
    def execute(cls, model, mode, ignore_base_check, clip=None, **values) -> io.NodeOutput:
        patched, hooks = (model, clip), Changes(model, clip, {}, {}).hooks()
        triggers, lines = [], []
        for row in _rows(values):
            if not row["on"]:
                continue
            adapter = folders.load_adapter(row["adapter"])
            in_blocks = row["blocks"] or ""
            change = changes(*patched, adapter, row["model"], row["clip"], mode, ignore_base_check, in_blocks)
            patched = change.patched()
            hooks = hooks.clone_and_combine(change.hooks())
            triggers.append(adapter.trigger_phrase)
            facts = [f"{row['model']:g}", *filter(None, [in_blocks, adapter.trigger_phrase and f"`{triggers[-1]}`"])]
            lines.append(f"- {row['adapter']}: {', '.join(facts)}")
        text = "\n".join(lines) or "no adapter is on"
        phrases = ", ".join(dict.fromkeys(filter(None, triggers)))
        return io.NodeOutput(*patched, hooks, phrases, text, ui=ui.PreviewText(text))
