# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user reads of a setting, and what it may hold: kept with the field of the record that it belongs to."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ..errors import SettingsError
from ..files import check_text

#: Of :attr:`Setting.when`: something is connected to a socket.
CONNECTED = "(connected)"


@dataclass(frozen=True)
class Setting:
    """One field of a record of settings.

    Args:
        help: its tooltip, with its unit and the reason for its default.
        choices: the names it may hold.
        minimum: a number may be no less.
        maximum, step: what its widget offers; a script may go beyond the maximum.
        advanced: for those who look for it; of a training, in the node of settings.
        when: it matters only while another input, by name, holds this value; :data:`CONNECTED` for a socket's link.
        exponent: is written as 5e-5.
    """

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    advanced: bool = False
    when: tuple[str, str] | None = None
    exponent: bool = False

    def check(self, name: str, value: Any, offered: bool = False) -> None:
        """Raise unless the value is allowed; with ``offered``, unless its widget offers it."""
        if isinstance(value, str):
            check_text(name, value)
        if self.choices and value not in self.choices:
            raise SettingsError(f"{name} must be one of {list(self.choices)}, got {value!r}")
        if self.minimum is not None and not (self.minimum <= value < math.inf):  # (NaN is neither)
            raise SettingsError(f"{name} must be {self.minimum:g} or more, got {value!r}")
        if offered and self.maximum is not None and value > self.maximum:
            raise SettingsError(f"{name} must be {self.maximum:g} or less, got {value!r}")


def setting(help: str, **limits: Any) -> dict[str, Setting]:
    """A field's metadata: a :class:`Setting` of these arguments."""
    return {"setting": Setting(help, **limits)}


def settings_of(record: Any) -> dict[str, Setting]:
    """The settings of a record or of its class, by name; fields without one are no user's business."""
    return {f.name: f.metadata["setting"] for f in fields(record) if "setting" in f.metadata}


def check_settings(record: Any, offered: bool = False) -> None:
    """
    Args:
        offered: hold the record to what the widgets offer; the host does not for values that come through a link.

    Raises:
        SettingsError: a value is none of the choices, no number, or out of range.
    """
    for name, limits in settings_of(record).items():
        limits.check(name, getattr(record, name), offered)
