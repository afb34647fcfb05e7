# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema of an adapter file's JSON: what it may say, and how much of it.

Everything is checked here, before a tensor is touched: types, finiteness, ranges, sizes, and that sizes fit each
other. What passes can be adapted, shown, merged and saved again; what does not is refused with the key at fault.
``docs/fileformat.md`` lists the keys and limits for people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, get_args

from .errors import FileFormatError
from .kronecker import LARGEST_FACTOR, MOST_FACTORS
from .layer import MOST_STRENGTH, MOST_TERMS, Rule
from .layer_spec import LayerSpec, TermSpec
from .spectral import Decomposition
from .text import half_character

FORMAT_VERSION = 1

#: Limits: of layers and tensors in a file; of characters in a layer's name; of a side of a weight, flattened to a
#: matrix; of bytes of text in one value, and in a thumbnail; of levels and values in the JSON of the metadata.
LAYERS, TENSORS = 20_000, 100_000
NAME = 512
SIDE = 2**20
TEXT, THUMBNAIL = 64 * 1024, 1024 * 1024
DEPTH, VALUES = 16, 10_000
#: Of bytes: of this JSON, of each graph (``workflow``, ``prompt``), and of all that stands in front of the tensors.
DOCUMENT, GRAPH, HEADER = 16 * 2**20, 16 * 2**20, 64 * 2**20

_INTEGERS = 2**64  #: whole numbers stay below


@dataclass(frozen=True)
class Document:
    """The JSON under the header's ``soda``, checked."""

    layers: Mapping[str, LayerSpec]
    metadata: Mapping[str, Any]
    digest: str | None  #: see :func:`.fileformat.content_hash`; None in files that are older than it

    @classmethod
    def parse(cls, text: str) -> Document:
        """
        Raises:
            FileFormatError: naming the key, what was expected and what was found.
        """
        document = _record(_decoded(check_text(text, "'soda'", DOCUMENT)), "'soda'")
        version = _integer(_entry(document, "format_version", "'soda'"), "format_version")
        if version != FORMAT_VERSION:
            raise FileFormatError(
                f"format version {version}, this pack reads version {FORMAT_VERSION}; update the pack"
            )
        layers = _layers(_entry(document, "layers", "'soda'"))
        metadata = document.get("metadata")
        checked = {} if metadata is None else _metadata(metadata)
        return cls(layers, checked, _optional(_hash, document.get("digest"), "digest"))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor that the file must hold, by its key; all are float32."""
        return {
            prefix + part: shape
            for name, layer in self.layers.items()
            for prefix, (_, term) in zip(layer.prefixes(name), layer.terms, strict=True)
            for part, shape in term.tensors().items()
        }


def check_text(value: Any, where: str, most: int = TEXT) -> str:
    """Text of up to ``most`` bytes in UTF-8."""
    if not isinstance(value, str):
        raise _unexpected(where, "a text", value)
    if len(value) > most:
        raise FileFormatError(f"{where} is a text of {len(value):,} characters, at most {most:,} bytes are allowed")
    if (place := half_character(value)) is not None:
        shown = f"{value[place]!r} at place {place}"
        raise FileFormatError(f"{where} holds half a character ({shown}), which no file can keep")
    if (size := len(value.encode())) > most:
        raise FileFormatError(f"{where} is a text of {size:,} bytes, at most {most:,} are allowed")
    return value


# --------------------------------------------------------------------------------------------------------------- JSON


def _decoded(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for key, value in pairs:
            if key in record:
                raise FileFormatError(f"the key {_shown(key)} is there twice")
            record[key] = value
        return record

    def refuse(constant: str) -> None:
        raise FileFormatError(f"holds {constant}, which is not a number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except FileFormatError:
        raise
    except RecursionError:
        raise FileFormatError("nested deeper than JSON of an adapter ever is") from None
    except ValueError as error:  # no JSON, or a number of thousands of digits
        raise FileFormatError(f"no JSON ({error})") from error


def _unexpected(where: str, expected: str, found: Any) -> FileFormatError:
    return FileFormatError(f"{where} must be {expected}, found {_shown(found)}")


def _unknown(where: str, keys: set[str]) -> FileFormatError:
    return FileFormatError(f"{where} has {_shown(min(keys))}, which this pack does not know; update the pack")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, int) and abs(value) >= _INTEGERS:
        return "a huge number"  # int to text is slow, and refused beyond some thousand digits
    return repr(value if not isinstance(value, str) or len(value) <= 40 else f"{value[:40]}…")


def _entry(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise FileFormatError(f"{where} has no {key!r}")
    return record[key]


def _record(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unexpected(where, "an object", value)
    return value


def _list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise _unexpected(where, "a list", value)
    if len(value) > most:
        raise FileFormatError(f"{where} has {len(value):,} entries, at most {most:,} are allowed")
    return value


def _integer(value: Any, where: str, low: int = 0, high: int = _INTEGERS - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _unexpected(where, f"a whole number between {low:,} and {high:,}", value)
    return value


def _number(value: Any, where: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= most:  # (NaN is not, either)
        raise _unexpected(where, f"a number between -{most:g} and {most:g}", value)
    return float(value)


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _unexpected(where, "true or false", value)
    return value


def _hash(value: Any, where: str) -> str:
    if len(check_text(value, where)) != 64 or not set(value) <= set("0123456789abcdef"):
        raise _unexpected(where, "a SHA-256 in 64 hexadecimal digits", value)
    return value


def _optional(check: Callable[[Any, str], Any], value: Any, where: str) -> Any:
    return None if value is None else check(value, where)


# ------------------------------------------------------------------------------------------------------------- layers


def _layers(value: Any) -> dict[str, LayerSpec]:
    entries = _record(value, "layers")
    if not entries:
        raise FileFormatError("lists no layers")
    if len(entries) > LAYERS:
        raise FileFormatError(f"layers has {len(entries):,} entries, at most {LAYERS:,} are allowed")
    layers, tensors = {}, 0
    for name, entry in entries.items():
        if not 0 < len(name) <= NAME or not name.isprintable():
            raise FileFormatError(f"a layer is called {_shown(name)}: names are 1 to {NAME} printable characters")
        layers[name] = layer = _layer(entry, f"layers[{_shown(name)}]")
        tensors += sum(len(term.tensors()) for _, term in layer.terms)
        if tensors > TENSORS:
            raise FileFormatError(f"layers list more than {TENSORS:,} tensors")
    return layers


def _layer(value: Any, where: str) -> LayerSpec:
    entry = _record(value, where)
    if "terms" not in entry:
        return LayerSpec(((1.0, _term(entry, where)),), rule=None)
    if unknown := entry.keys() - {"terms", "rule"}:
        raise _unknown(where, unknown)
    rule = entry.get("rule", "sum")
    if rule not in get_args(Rule):
        raise _unexpected(f"{where}.rule", f"one of {list(get_args(Rule))}", rule)
    terms = _list(entry["terms"], f"{where}.terms", 2 if rule == "projection" else MOST_TERMS)
    if not terms:
        raise FileFormatError(f"{where}.terms is a {rule} of no terms")
    checked = []
    for i, term in enumerate(terms):
        place = f"{where}.terms[{i}]"
        strength = _number(_entry(_record(term, place), "strength", place), f"{place}.strength", MOST_STRENGTH)
        checked.append((strength, _term(term, place)))
    for key in ("shape", "shift"):
        if len(known := {getattr(term, key) for _, term in checked} - {None}) > 1:
            raise FileFormatError(f"{where}.terms differ in {key}: {' and '.join(map(str, sorted(known)))}")
    if len(known := {math.prod(term.factors) for _, term in checked if term.factors}) > 1:
        raise FileFormatError(f"{where}.terms rotate {' and '.join(map(str, sorted(known)))} inputs")
    return LayerSpec(tuple(checked), rule)


def _term(entry: Mapping[str, Any], where: str) -> TermSpec:
    if unknown := entry.keys() - {"strength", *(field.name for field in fields(TermSpec))}:
        raise _unknown(where, unknown)
    decomposition = _entry(entry, "decomposition", where)
    if decomposition not in get_args(Decomposition):
        raise _unexpected(f"{where}.decomposition", f"one of {list(get_args(Decomposition))}", decomposition)
    sizes = _list(_entry(entry, "factors", where), f"{where}.factors", MOST_FACTORS)
    least = 2 if len(sizes) > 1 else 1  # a layer with one input has one factor of size 1
    factors = tuple(_integer(k, f"{where}.factors[{i}]", least, LARGEST_FACTOR) for i, k in enumerate(sizes))
    if math.prod(factors) > SIDE:
        raise FileFormatError(f"{where}.factors rotate {math.prod(factors):,} inputs, at most {SIDE:,} are allowed")
    of_weight = partial(_integer, low=1, high=SIDE)
    shift = _optional(of_weight, _entry(entry, "shift", where), f"{where}.shift")
    shape = _optional(_shape, _entry(entry, "shape", where), f"{where}.shape")
    probe = _boolean(_entry(entry, "probe", where), f"{where}.probe")
    knots = _optional(of_weight, entry.get("knots"), f"{where}.knots")
    sketched = _list(entry.get("sketched", []), f"{where}.sketched", MOST_TERMS)
    strengths = tuple(_number(a, f"{where}.sketched[{i}]", MOST_STRENGTH) for i, a in enumerate(sketched))
    if strengths and (shift is None or not probe):
        raise FileFormatError(f"{where}.sketched belongs to a shift and its probe")
    if shape is not None:
        out, in_features = shape[0], math.prod(shape[1:])
        if factors and math.prod(factors) != in_features:
            raise FileFormatError(
                f"{where}.factors rotate {math.prod(factors)} inputs, a weight of shape {shape} has {in_features}"
            )
        if shift is not None and shift != min(out, in_features):
            raise FileFormatError(
                f"{where}.shift has {shift} entries, expected {min(out, in_features)} for a weight of shape {shape}"
            )
    return TermSpec(decomposition, factors, shift, shape, probe, knots, strengths)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    sides = _list(value, where, 5)
    shape = tuple(_integer(side, f"{where}[{i}]", 1, SIDE) for i, side in enumerate(sides))
    if len(shape) < 2 or math.prod(shape[1:]) > SIDE:
        raise _unexpected(where, f"two to five sides, of up to {SIDE:,} inputs", shape)
    return shape


# ----------------------------------------------------------------------------------------------------------- metadata


def _metadata(value: Any) -> dict[str, Any]:
    """Known keys have their types, others are any plain JSON; null is as good as absent."""
    metadata = _record(value, "metadata")
    _plain({key: entry for key, entry in metadata.items() if key != "thumbnail"})
    for key, check in _KNOWN.items():
        _optional(check, metadata.get(key), f"metadata.{key}")
    return metadata


def _plain(metadata: dict[str, Any]) -> None:
    """Bounded in depth, number and size of its values, and finite."""
    waiting: list[tuple[str, Any, int]] = [("metadata", metadata, 1)]
    seen = 0
    while waiting:
        where, value, depth = waiting.pop()
        seen += 1
        if seen > VALUES:
            raise FileFormatError(f"metadata has more than {VALUES:,} values")
        if depth > DEPTH:
            raise FileFormatError(f"{where} is nested more than {DEPTH} levels deep")
        if isinstance(value, dict):
            waiting += [(f"{where}[{_shown(check_text(k, where, TEXT))}]", v, depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{where}[{i}]", v, depth + 1) for i, v in enumerate(_list(value, where, VALUES))]
        elif isinstance(value, str):
            check_text(value, where)
        elif isinstance(value, bool | None):
            continue
        elif not abs(value) < (_INTEGERS if isinstance(value, int) else math.inf):
            raise _unexpected(where, f"a finite number below {_INTEGERS:,}", value)


def _base_model(value: Any, where: str) -> None:
    for key, entry in _record(value, where).items():
        _optional(check_text, entry, f"{where}.{key}")


def _parents(value: Any, where: str) -> None:
    for i, parent in enumerate(_list(value, where, VALUES)):
        place = f"{where}[{i}]"
        _hash(_entry(_record(parent, place), "hash", place), f"{place}.hash")
        _optional(check_text, parent.get("title"), f"{place}.title")
        _optional(partial(_number, most=MOST_STRENGTH), parent.get("strength"), f"{place}.strength")


_KNOWN: dict[str, Callable[[Any, str], Any]] = {
    "title": check_text,
    "trigger_phrase": check_text,
    "usage_hint": check_text,
    "resolution": check_text,
    "thumbnail": partial(check_text, most=THUMBNAIL),
    "date": check_text,
    "steps": _integer,
    "seed": _integer,
    "pictures": _integer,
    "base_model": _base_model,
    "settings": _record,
    "versions": _base_model,
    "parents": _parents,
    "workflow": check_text,  # (these two are flat keys of their own in files that we write)
    "prompt": check_text,
}
