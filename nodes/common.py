# SPDX-License-Identifier: GPL-3.0-or-later
"""What several nodes share: socket types, inputs, and the graph as metadata of what they write."""

from __future__ import annotations

import json
from typing import Any, get_args

from comfy.cli_args import args
from comfy_api.latest import io

from ..soda_core.layer import StrengthMode
from ..soda_core.training.setting import Setting, settings_of

CATEGORY = "SODA"

SodaAdapterType = io.Custom("SODA_ADAPTER")
LossMapType = io.Custom("LOSS_MAP")
TrainingSettingsType = io.Custom("SODA_SETTINGS")

HOOKS = io.Hooks.Output(
    display_name="HOOKS",
    tooltip="The same change as the host's hooks, for the MODEL without the adapter: Set Hook Keyframes makes its "
    "strength follow the steps, Cond Pair Set Props gives it to a prompt, with a mask to a part of the picture.",
)


def blocks(id: str, of: str, optional: bool = True) -> io.Input:
    """Strengths by blocks, as text."""
    return io.String.Input(
        id,
        default="",
        optional=optional,
        placeholder="up 0.5, middle 0",
        tooltip=f"What the strength of {of} is multiplied by in some blocks: up 0.5, middle 0. Groups are those that "
        "the adapter has: down, middle, up or double, single, joint; image, text (attention to the picture itself, to "
        "the prompt); one block is up.3, all is all. Two names mean layers in both (up text 0); the last entry that "
        "fits a layer counts. A wrong name is answered with those there are. Empty = 1 everywhere.",
    )


def adapter_output(tooltip: str) -> io.Output:
    return SodaAdapterType.Output(display_name="adapter", tooltip=tooltip)


def filename_prefix(default: str) -> io.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Name of the file in the soda model folder, counted up: 'subject' gives subject_00001_.safetensors. "
        "A sub-folder may stand in front (people/anna); '..' and absolute paths are refused.",
    )


#: By the type of the default; a setting with choices is a combo.
_WIDGETS: dict[type, Any] = {str: io.String, bool: io.Boolean, int: io.Int, float: io.Float}


def widget(record: type, name: str, hidden: bool = False, offers: str = "", before: str = "", **host: Any) -> io.Input:
    """The input for a field of a record of settings.

    Args:
        hidden: the front end shows it only where it holds something else than its default,
        offers: or a combo offers something that begins so.
        before: what a workflow means that was saved before there was this input; its default without.
        host: what only the host's widget knows; ``options`` makes it a combo of names that change.
    """
    default, setting = getattr(record, name), settings_of(record)[name]
    kind = io.Combo if setting.choices or "options" in host else _WIDGETS[type(default)]
    limits = {
        "options": list(setting.choices) or None,
        "min": setting.minimum,
        "max": setting.maximum,
        "step": setting.step,
        "advanced": setting.advanced or None,
    }
    given = {key: value for key, value in limits.items() if value is not None} | host
    shown = _shown(record, setting, hidden, offers) | ({"soda_before": before} if before else {})
    return kind.Input(name, default=default, tooltip=setting.help, extra_dict=shown, **given)


def _shown(record: type, setting: Setting, hidden: bool, offers: str) -> dict[str, Any]:
    """What ``web/widgets.js`` makes of it, and before that the front end itself."""
    shown: dict[str, Any] = {"hidden": True} if hidden else {}
    if offers:
        shown["soda_offers"] = offers
    if setting.when and not hidden:
        other, value = setting.when
        shown = {"soda_when": [other, value]} | ({} if getattr(record, other, None) == value else {"hidden": True})
    return shown | ({"widgetType": "SODA_NUMBER"} if setting.exponent else {})


def strength(name: str, tooltip: str) -> io.Input:
    """A strength: 1 = as trained, beyond and below allowed."""
    return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=tooltip)


def ignore_base_check() -> io.Input:
    return io.Boolean.Input(
        "ignore_base_check",
        default=False,
        advanced=True,
        tooltip="An adapter's spectral shift belongs to the base it was trained on. Above 20 % error the node "
        "stops; on = go on all the same. Off by default, because a wrong base fails without any other sign. "
        "Adapters with a rotation only never stop; the log says when the base is another.",
    )


def mode() -> io.Input:
    return io.Combo.Input(
        "mode",
        options=list(get_args(StrengthMode)),
        default="linear",
        tooltip="How strength scales. linear: W0 + s (W - W0), as with a LoRA (default, because adapters then add "
        "up). geodesic: turns the rotation by s times its angle, so the weight stays on the manifold and "
        "strengths above 1 do not blow up.",
    )


def strength_inputs() -> list[io.Input]:
    """Strengths, their mode and the base check, as Load and Apply have them."""
    return [
        strength(
            "strength_model",
            "How much of the adapter the MODEL gets: 0 = base model, 1 = as trained (the default), negative = "
            "the opposite change.",
        ),
        strength(
            "strength_clip",
            "The same for the text encoder; 1 = as trained. Train SODA adapts none, so its adapters do not use it.",
        ),
        mode(),
        ignore_base_check(),
    ]


def graph_metadata(hidden: Any) -> dict[str, str]:
    """``workflow`` and ``prompt`` as JSON text: dropping the file on the canvas brings its graph back.

    Nothing where the user started the host with --disable-metadata."""
    if args.disable_metadata:
        return {}
    workflow = (hidden.extra_pnginfo or {}).get("workflow")
    entries = {"workflow": workflow, "prompt": hidden.prompt}
    return {key: json.dumps(value) for key, value in entries.items() if value}


def saved_files(folder: str, name: str) -> dict[str, list[dict[str, str]]]:
    """For a node's ``ui``: a file that it has saved in a model folder, for its history entry and for its own display.

    Args:
        name: as listed; a whole path where no model folder took the file.
    """
    subfolder, _, filename = name.replace("\\", "/").rpartition("/")
    return {"soda_saved": [{"name": name, "filename": filename, "subfolder": subfolder, "type": folder}]}
