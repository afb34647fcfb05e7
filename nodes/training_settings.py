# SPDX-License-Identifier: GPL-3.0-or-later
"""SODA Training Settings: what Train SODA does not show at first sight."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..soda_core.host import folders
from ..soda_core.host.training import RunOptions, states
from ..soda_core.training.setting import settings_of
from ..soda_core.training.settings import TrainSettings
from .common import CATEGORY, TrainingSettingsType, widget

#: In the order in which they came: a saved workflow stores values by their place.
_CAME_LATER = ("rate_units", "rates")


def _inputs() -> list[io.Input]:
    inputs = {}
    for record in (TrainSettings, RunOptions):
        for name, setting in settings_of(record).items():
            if setting.advanced:
                host = {"options": states.choices()} if name == "continue_from" else {}
                inputs[name] = widget(record, name, advanced=None, **host)
    return [inputs[name] for name in (*(name for name in inputs if name not in _CAME_LATER), *_CAME_LATER)]


class SodaTrainingSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SODATrainingSettings",
            display_name="SODA Training Settings",
            category=f"{CATEGORY}/training",
            description="The settings of Train SODA that are rarely changed, and the run to continue. Their defaults "
            "are those of Train SODA without this node.",
            search_aliases=["soda", "train options", "advanced settings", "schedule", "resume training"],
            inputs=_inputs(),
            outputs=[TrainingSettingsType.Output(display_name="settings", tooltip="For Train SODA.")],
        )

    @classmethod
    def validate_inputs(cls, continue_from=None) -> bool:
        """A node may still hold a run that is finished and no longer offered: only training from it is an error."""
        return True

    @classmethod
    def fingerprint_inputs(cls, continue_from=None, **_: Any) -> str:
        """An adapter to start from may have been trained anew."""
        return folders.version_of(continue_from) if isinstance(continue_from, str) else ""

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(settings)
