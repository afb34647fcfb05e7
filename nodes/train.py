# SPDX-License-Identifier: GPL-3.0-or-later
"""Train SODA (in-graph)."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..soda_core.host import folders
from ..soda_core.host.apply import apply_adapter
from ..soda_core.host.board import board
from ..soda_core.host.server import notice
from ..soda_core.host.training import RunOptions, TrainingData, graph_notices, states, tell, train_in_graph
from ..soda_core.report.loss_curve import loss_curve
from ..soda_core.report.theme import to_image_tensor
from ..soda_core.training.setting import check_settings, settings_of
from ..soda_core.training.settings import UNSAID_UNITS, TrainSettings
from .common import (
    CATEGORY,
    LossMapType,
    TrainingSettingsType,
    adapter_output,
    filename_prefix,
    graph_metadata,
    saved_files,
    widget,
)

_LIST_INPUTS = (
    "latents",
    "positive",
    "base_positive",
    "class_latents",
    "class_positive",
    "negative",
    "preview_positive",
)
#: A saved workflow stores values of widgets by their place, an API prompt by their name: neither may ever change.
_REQUIRED = ("trigger_phrase", "steps", "batch_size", "rotation_lr", "shift_lr", "decomposition", "train", "layers")
_OPTIONAL = (
    "layer_pattern", "factor_preset", "factor_count", "loss", "dco_beta", "min_snr_gamma", "prior_weight", "schedule",
    "warmup_steps", "accumulation", "gradient_clip", "retraction", "seed", "training_dtype", "gradient_checkpointing",
    "save_every", "preview_every", "preview_steps", "shift_knots", "state_minutes", "continue_from", "rate_units",
    "rates",
)  # fmt: skip


def _widgets(names: tuple[str, ...], **host: Any) -> list[io.Input]:
    """Those for SODA Training Settings are hidden here: they are for workflows and prompts from before that node."""
    records = {name: record for record in (TrainSettings, RunOptions) for name in settings_of(record)}
    own: dict[str, dict[str, Any]] = {
        "rotation_lr": {"round": False},
        "shift_lr": {"round": False},
        "seed": {"control_after_generate": io.ControlAfterGenerate.fixed},
        "continue_from": {"options": states.choices(), "offers": states.LISTED_AS},
        "rate_units": {"before": UNSAID_UNITS},
    }
    return [
        widget(
            records[name], name, settings_of(records[name])[name].advanced, advanced=None, **own.get(name, {}), **host
        )
        for name in names
    ]  # fmt: skip


def _given(own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Values of the node itself and of SODA Training Settings; where the node's own is no default, it goes before."""
    default = {name: getattr(record, name) for record in (TrainSettings, RunOptions) for name in settings_of(record)}
    values = own | {name: value for name, value in shared.items() if own.get(name, default[name]) == default[name]}
    if both := sorted(name for name, value in shared.items() if values[name] != value):
        logging.warning("SODA: %s of Train SODA itself go before those of its settings", ", ".join(both))
    return values


class SodaTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODATrain",
            display_name="Train SODA (in-graph)",
            category=f"{CATEGORY}/training",
            description="Trains a SODA adapter on the MODEL of the graph with three to ten pictures (one works): "
            "shifts the spectrum of its weights and rotates their basis with small orthogonal matrices. The file is "
            "saved as soon as training ends; cancelling keeps the adapter so far. The input MODEL is not changed.",
            search_aliases=["soda", "train lora", "dreambooth", "fine-tune", "personalization", "svdiff", "oft"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model to adapt. It is only read."),
                io.Latent.Input(
                    "latents", tooltip="Encoded training pictures: one batch, or a list (Make Training Dataset)."
                ),
                io.Conditioning.Input(
                    "positive", tooltip="Encoded captions: one for all pictures, or one for each in the same order."
                ),
                filename_prefix("subject"),
                *_widgets(_REQUIRED),
                io.Conditioning.Input(
                    "base_positive",
                    optional=True,
                    tooltip="For dco: the captions without your placeholder word ('a dog' for 'a sks dog'), one for "
                    "all or one each. Without it the base sees the same captions as the model.",
                ),
                io.Latent.Input(
                    "class_latents",
                    optional=True,
                    tooltip="Prior preservation: encoded pictures of the class, so that the word keeps its meaning.",
                ),
                io.Conditioning.Input(
                    "class_positive", optional=True, tooltip="Captions of the class pictures ('a dog')."
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative conditioning for previews; without it they use cfg 1."
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Decodes previews in full quality; without it they are rough."
                ),
                *_widgets(_OPTIONAL, optional=True),
                TrainingSettingsType.Input(
                    "settings",
                    optional=True,
                    tooltip="From SODA Training Settings: all that is not shown here. What the node itself shows goes "
                    "before it.",
                ),
                io.Conditioning.Input(
                    "preview_positive",
                    optional=True,
                    tooltip="Prompts of the previews, one picture each: one prompt, or a list (Create List). Without "
                    "it the first caption.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            outputs=[
                adapter_output("The trained adapter, already saved."),
                io.Model.Output(display_name="MODEL", tooltip="The base model with the adapter applied at strength 1."),
                LossMapType.Output(display_name="loss_map", tooltip="Loss per step, as the core nodes use it."),
                io.Image.Output(display_name="loss_curve", tooltip="Plain loss over steps, whichever is trained with."),
                io.String.Output(display_name="saved_name", tooltip="Name of the file in the soda folder."),
            ],
        )

    @classmethod
    def validate_inputs(cls, continue_from=None) -> bool:
        """A node may still hold a run that is finished and no longer offered: only training from it is an error."""
        return True

    @classmethod
    def fingerprint_inputs(cls, continue_from=None, **_: object) -> str:
        """An adapter to start from may have been trained anew. (A run that goes on is the same run.)"""
        return folders.version_of(continue_from[0]) if continue_from and isinstance(continue_from[0], str) else ""

    @classmethod
    def execute(cls, model, **inputs: list[Any]) -> io.NodeOutput:
        values = {name: value if name in _LIST_INPUTS else value[0] for name, value in inputs.items() if value}
        values = {name: value for name, value in values.items() if value is not None and value != [None]}
        values = _given(values, values.pop("settings", {}))
        context = get_executing_context()
        graph = (cls.hidden.extra_pnginfo or {}).get("workflow")
        live = board.open(str(cls.hidden.unique_id), graph, context.prompt_id if context else "")
        data = TrainingData(**{n: values.pop(n) for n in (*_LIST_INPUTS, "vae") if n in values})
        options = RunOptions(
            filename_prefix=values.pop("filename_prefix"),
            notes=graph_metadata(cls.hidden),
            live=live,
            warn=notice(cls.hidden.unique_id),
            **{n: values.pop(n) for n in settings_of(RunOptions) if n in values},
        )
        settings = TrainSettings(**{"rate_units": UNSAID_UNITS, **values})  # (a prompt from before)
        for record in (settings, options):
            check_settings(record, offered=True)
        tell(graph_notices(cls.hidden.prompt or {}, cls.hidden.unique_id), options)
        result = train_in_graph(model[0], data, settings, options)
        patched, _ = apply_adapter(model[0], None, result.adapter)
        rates = result.learning_rates if len(set(result.learning_rates)) > 1 else None
        curve = to_image_tensor(loss_curve(result.losses, title=result.adapter.title, learning_rates=rates))
        return io.NodeOutput(
            result.adapter,
            patched,
            {"loss": result.losses},
            curve,
            result.saved_name,
            ui={"soda_training": [live.state()], **saved_files(folders.FOLDER, result.saved_name)},
        )
