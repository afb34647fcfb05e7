# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a run as TOML: read for ``soda train``, and written from what an adapter's file says.

Keys are the settings' names, without sections but for ``[factor_sizes]``: sizes by number of inputs. A file with a
learning rate and without ``rate_units`` is from before there was a choice, and counts as it was then.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapter import SodaAdapter
from ..errors import SettingsError
from ..text import printable
from ..training.options import FolderOptions, RunSettings
from ..training.setting import settings_of
from ..training.settings import UNSAID_UNITS, TrainSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: What a run is told, in the order in which it is written.
RECORDS: tuple[type, ...] = (TrainSettings, RunSettings, FolderOptions)
_TABLE = "factor_sizes"
_RATES = ("rotation_lr", "shift_lr")


def read(path: Path) -> dict[str, Any]:
    """Settings by name.

    Raises:
        SettingsError: no TOML, a setting that does not exist, or one of another type; it names file and key.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}") from error
    defaults = {name: getattr(record, name) for record in RECORDS for name in settings_of(record)}
    for name, value in values.items():
        if name == _TABLE:
            values[name] = _sizes(path, value)
        elif name not in defaults:
            near = difflib.get_close_matches(name, defaults, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(defaults)}"
            raise SettingsError(f"{path}: there is no setting {printable(name)!r}{hint}")
        else:
            values[name] = _typed(path, name, value, type(defaults[name]))
    if not values.keys().isdisjoint(_RATES):
        values.setdefault("rate_units", UNSAID_UNITS)
    return values


def _typed(path: Path, name: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise SettingsError(f"{path}: {name} must be {_KINDS[kind]}, got {printable(repr(value))}")
    return value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}


def _sizes(path: Path, table: Any) -> dict[int, tuple[int, ...]]:
    try:
        return {int(in_features): tuple(int(size) for size in sizes) for in_features, sizes in table.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{path}: [{_TABLE}] must hold lists of whole numbers by number of inputs (320 = [16, 20])"
        ) from error


def settings(adapter: SodaAdapter) -> dict[str, Any]:
    """What an adapter's file says of the run that made it, as :func:`read` returns it.

    Raises:
        SettingsError: it was not trained, but merged or imported.
    """
    said = dict(adapter.metadata.get("settings") or {})
    if "training_dtype" not in said and "dtype" in said:
        said["training_dtype"] = said.pop("dtype")
    if "steps" not in said:
        kind = "merged" if adapter.metadata.get("parents") else "imported or made elsewhere"
        raise SettingsError(f"{adapter.label} was {kind}: its file holds no settings of a training")
    sizes = said.pop(_TABLE, None)
    found = TrainSettings.from_metadata({name: value for name, value in said.items() if name != "training_dtype"})
    values = {name: getattr(found, name) for name in settings_of(TrainSettings)}
    values |= {name: said[name] for name in ("training_dtype",) if name in said}
    values |= {"trigger_phrase": adapter.trigger_phrase} if adapter.trigger_phrase else {}
    folder = adapter.metadata.get("folder") or {}
    values |= {name: folder[name] for name in settings_of(FolderOptions) if name in folder}
    return values | ({_TABLE: {int(in_features): list(of) for in_features, of in sizes.items()}} if sizes else {})


def text(adapter: SodaAdapter) -> str:
    """:func:`settings` as TOML, with what it cannot say as comments."""
    values = settings(adapter)
    lines = [f"# The settings of {adapter.label}, for soda train --settings FILE", f"# base: {adapter.trained_on}"]
    pictures, size = adapter.metadata.get("pictures"), adapter.metadata.get("resolution")
    if pictures:
        lines.append(printable(f"# pictures: {pictures} ({size or 'of unknown size'})"))
    if origin := adapter.metadata.get("started_from"):
        lines.append(printable(f"# it started from {origin.get('title')}: --continue-from that adapter"))
    sizes = values.pop(_TABLE, None)
    lines += ["", *(f"{name} = {_value(value)}" for name, value in values.items())]
    if sizes:
        lines += ["", f"[{_TABLE}]", *(f"{in_features} = {list(of)}" for in_features, of in sizes.items())]
    return "\n".join(lines)


def _value(value: Any) -> str:
    """A TOML value. Its strings are those of JSON, but that it also escapes DEL."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def sorted_out(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values of each of :data:`RECORDS`."""

    def of(record: type) -> dict[str, Any]:
        names = [*settings_of(record), *([_TABLE] if record is TrainSettings else [])]
        return {name: values[name] for name in names if name in values}

    return [of(record) for record in RECORDS]
