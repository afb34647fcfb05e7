# SPDX-License-Identifier: GPL-3.0-or-later
"""Handmade monsters: each makes a file of a good adapter's parts.

The good adapter has the layer :data:`NAME` with two factors, a shift and sketches, and metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch

from .file import Adapter, pack

NAME = "net.block.0.to_q"
Monster = Callable[[Adapter], bytes]


def layer(**changes: Any) -> dict[str, Any]:
    return {"decomposition": "svd", "factors": [2, 2], "shift": None, "shape": None, "probe": False, **changes}


def _plain(factors: list[int], **changes: Any) -> bytes:
    return Adapter.identity({"x": layer(factors=factors, **changes)}).to_bytes()


#: 26 factors of size 1 in 2 KB: any search through the ways to group them takes for ever.
TINY_BOMB = _plain([1] * 26)


def _set(*path: Any) -> Monster:
    """With the value at the end of the path in the JSON of the layer."""
    *where, key, value = path

    def change(document: Any) -> None:
        place = document["layers"][NAME]
        for step in where:
            place = place[step]
        place[key] = value

    return lambda good: good.edited(change).to_bytes()


def _metadata(**values: Any) -> Monster:
    return lambda good: good.edited(lambda d: d["metadata"].update(values)).to_bytes()


def _document(**values: Any) -> Monster:
    return lambda good: good.edited(lambda d: d.update(values)).to_bytes()


def _layers(layers: Any) -> Monster:
    """With other layers, which list no tensors."""
    return lambda good: Adapter({}, {**good.document, "layers": layers}, good.flat).without_hashes().to_bytes()


def _digest(digest: Any) -> Monster:
    return lambda good: Adapter(good.tensors, {**good.document, "digest": digest}, good.flat).to_bytes()


def _text(change: Callable[[str], str]) -> Monster:
    """With a change of the JSON's text."""
    return lambda good: good.edited(lambda d: change(json.dumps(d))).to_bytes()


def _value(text: str) -> Monster:
    """With a text of JSON in place of ``metadata``."""
    return _text(lambda d: json.dumps({**json.loads(d), "metadata": 12345}).replace("12345", text))


def _sum(**changes: Any) -> Monster:
    term = layer(strength=0.5, factors=[2]) | changes

    def write(good: Adapter) -> bytes:
        tensors = {f"x.soda_term_{i}_factor_0": torch.eye(2) for i in range(2)}
        document = {"format_version": 1, "layers": {"x": {"terms": [layer(strength=0.5, factors=[2]), term]}}}
        return Adapter(tensors, {**document, "metadata": {}}).to_bytes()

    return write


def _terms(terms: Any) -> Monster:
    return _layers({"x": {"terms": terms}})


def _two_widths(good: Adapter) -> bytes:
    tensors = {f"x.soda_term_{i}_factor_0": torch.eye(2 + i) for i in range(2)}
    terms = [layer(strength=1.0, factors=[2 + i]) for i in range(2)]
    return Adapter(tensors, {"format_version": 1, "layers": {"x": {"terms": terms}}, "metadata": {}}).to_bytes()


def _tensor(part: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Monster:
    return lambda good: good.with_tensor(part, change).to_bytes()


def _header(change: Callable[[dict[str, Any]], Any]) -> Monster:
    return lambda good: good.with_header(change)


def _offsets(start: int, stop: int) -> Monster:
    return _header(lambda header: header[f"{NAME}.soda_shift"].update(data_offsets=[start, stop]))


def _entry(**values: Any) -> Monster:
    return _header(lambda header: header[f"{NAME}.soda_shift"].update(values))


def _twice_in_header(good: Adapter) -> bytes:
    header, data = good.header()
    text = json.dumps(header)
    key = f'"{NAME}.soda_shift"'
    again = json.dumps(header[f"{NAME}.soda_factor_0"])
    return pack(f"{text[:-1]}, {key}: {again}}}".encode(), data)


def _many_layers(count: int) -> Monster:
    return _layers({str(i): layer(factors=[]) for i in range(count)})


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


#: Not a file of safetensors, or not one of ours.
FILES: dict[str, Monster] = {
    "nothing": lambda good: b"",
    "seven bytes": lambda good: b"1234567",
    "only a size": lambda good: pack(b"", size=100),
    "a header of 2^63 bytes": lambda good: pack(b"{}", size=2**63),
    "a header of 2^64 - 1 bytes": lambda good: pack(b"{}", size=2**64 - 1),
    "a header of 65 MiB": lambda good: pack(b"{}" + b" " * (65 * 2**20)),
    "a header that is no text": lambda good: pack(b"\xff\xfe" * 50),
    "a header that is no JSON": lambda good: pack(b"{" * 64),
    "a header that is a list": lambda good: pack([1, 2]),
    "a deep header": lambda good: pack(_nested(100_000).encode()),
    "a deep metadata": lambda good: pack(f'{{"__metadata__": {_nested(100_000)}}}'.encode()),
    "metadata that is a list": _header(lambda h: h.update(__metadata__=[])),
    "metadata of numbers": _header(lambda h: h.update(__metadata__={"soda": 1})),
    "no metadata": _header(lambda h: h.pop("__metadata__") and None),
    "a pickle": lambda good: b"PK\x03\x04" + b"\0" * 60 + b"\x80\x02cposix\nsystem\n",
    "cut in the header": lambda good: good.to_bytes()[:300],
    "cut in the data": lambda good: good.to_bytes()[:-20],
    "more than there should be": lambda good: good.to_bytes() + b"\0" * 64,
}

#: Not the tensors that the JSON lists, or not such as an adapter has.
TENSORS: dict[str, Monster] = {
    "offsets that overlap": _offsets(0, 96),
    "offsets beyond the end": _offsets(2**40, 2**40 + 96),
    "offsets backwards": _offsets(96, 0),
    "offsets below zero": _offsets(-96, 0),
    "offsets of 2^63": _offsets(2**63, 2**63 + 96),
    "a shape that is another": _entry(shape=[25]),
    "a shape of 2^40": _entry(shape=[2**40]),
    "a shape that overflows": _entry(shape=[2**33, 2**33]),
    "a shape below zero": _entry(shape=[-24]),
    "a shape that is text": _entry(shape="24"),
    "a dtype that is none": _entry(dtype="F33"),
    "a dtype that is another": _entry(dtype="I32"),
    "a tensor twice": _twice_in_header,
    "a tensor of no size": _tensor("soda_shift", lambda t: torch.zeros(0)),
    "a tensor that is missing": _tensor("soda_shift", lambda t: None),
    "a tensor of halves": _tensor("soda_shift", lambda t: t.half()),
    "a tensor of whole numbers": _tensor("soda_shift", lambda t: t.int()),
    # values
    "NaN in a factor": _tensor("soda_factor_0", lambda t: t * math.nan),
    "NaN in a shift": _tensor("soda_shift", lambda t: t * math.nan),
    "NaN in the sketches": _tensor("soda_probe", lambda t: t * math.nan),
    "infinity in a shift": _tensor("soda_shift", lambda t: t + math.inf),
    "infinity in the sketches": _tensor("soda_probe", lambda t: t - math.inf),
    "a factor that shears": _tensor("soda_factor_0", lambda t: t + 0.01),
    "a factor of zeros": _tensor("soda_factor_0", lambda t: t * 0),
    "a digest of another file": _digest("0" * 64),
    "a huge factor": _tensor("soda_factor_0", lambda t: t * 1e38),
    "sketched without its tensor": _set("sketched", [1.0, 2.0]),
}

#: The JSON says what no adapter says.
DOCUMENTS: dict[str, Monster] = {
    # as text
    "JSON that is none": _text(lambda d: d[:-1]),
    "JSON of nothing": _text(lambda d: ""),
    "JSON that is a list": _text(lambda d: "[]"),
    "JSON that is a number": _text(lambda d: "1"),
    "JSON of another version": _document(format_version=2),
    "JSON of version 1.0": _document(format_version=1.0),
    "JSON of version true": _document(format_version=True),
    "JSON of version text": _document(format_version="1"),
    "JSON of version 2^80": _document(format_version=2**80),
    "JSON of 17 MiB": _text(lambda d: d + " " * (17 * 2**20)),
    "JSON that is deep": _text(lambda d: _nested(100_000)),
    "JSON that is deep inside": _value(f'{{"a": {_nested(100_000)}}}'),
    "JSON with a key twice": _text(lambda d: d.replace('"metadata"', '"layers": {}, "metadata"', 1)),
    "JSON with NaN": _value('{"a": NaN}'),
    "JSON with infinity": _value('{"a": -Infinity}'),
    "JSON with 1e999": _value('{"a": 1e999}'),
    "JSON with a number of 10,000 digits": _value(f'{{"a": {"9" * 10_000}}}'),
    "JSON with a number of 4,000 digits": _value(f'{{"seed": {"9" * 4_000}}}'),
    "a digest that is a number": _digest(1),
    # layers
    "layers that are a list": _layers([]),
    "no layers": _layers({}),
    "layers that are null": _layers(None),
    "20,001 layers": _many_layers(20_001),
    "200,000 layers": _many_layers(200_000),
    "a layer that is null": _layers({"x": None}),
    "a layer that is a list": _layers({"x": [1]}),
    "a layer that is empty": _layers({"x": {}}),
    "a layer with more": _set("bias", 3),
    "a layer without a name": _layers({"": layer(factors=[])}),
    "a layer with half a character": _layers({"\ud800": layer(factors=[])}),
    "a layer with a line break": _layers({"a\nb": layer(factors=[])}),
    "a layer with colours": _layers({"\x1b[31mred": layer(factors=[])}),
    "a layer's name of a megabyte": _layers({"x" * 2**20: layer(factors=[])}),
    "a decomposition of another kind": _set("decomposition", "lu"),
    "a decomposition that is null": _set("decomposition", None),
    "a decomposition that is a list": _set("decomposition", ["svd"]),
    "26 factors of 1": lambda good: TINY_BOMB,
    "26 factors of 2": lambda good: _plain([2] * 26),
    "17 factors of 2": lambda good: _plain([2] * 17),
    "five factors of 60": lambda good: _plain([60] * 5),
    "a million factors": _set("factors", [1] * 1_000_000),
    "a factor of 1 more": lambda good: _plain([4, 6, 1]),
    "a factor of 0": _set("factors", [0]),
    "a factor of -4": _set("factors", [-4, -6]),
    "a factor of 4.0": _set("factors", [4.0, 6]),
    "a factor that is true": _set("factors", [True]),
    "a factor that is text": _set("factors", ["4", "6"]),
    "a factor that is null": _set("factors", [None]),
    "a factor of 2^70": _set("factors", [2**70]),
    "factors that are text": _set("factors", "46"),
    "factors that are an object": _set("factors", {"4": 6}),
    "factors that are null": _set("factors", None),
    "factors that fit no shape": _set("shape", [24, 25]),
    "a shift of -1": _set("shift", -1),
    "a shift of 0": _set("shift", 0),
    "a shift that is text": _set("shift", "24"),
    "a shift that is a list": _set("shift", [24]),
    "a shift of 2^62": _set("shift", 2**62),
    "a shape of nothing": _set("shape", []),
    "a shape of one side": _set("shape", [24]),
    "a shape of six sides": _set("shape", [24, 24, 1, 1, 1, 1]),
    "a shape with 0": _set("shape", [0, 24]),
    "a shape with text": _set("shape", ["24", 24]),
    "a shape in text": _set("shape", "24"),
    "a shape of 2^40 a side": _set("shape", [2**40, 2**40]),
    "sketches that are text": _set("probe", "yes"),
    "sketches that are a number": _set("probe", 1),
    "knots that are text": _set("knots", "16"),
    "knots below zero": _set("knots", -16),
    "knots without number": _set("knots", []),
    "sketched without end": _set("sketched", [1.0] * 65),
    "sketched that is a number": _set("sketched", 1.0),
    "sketched at a huge strength": _set("sketched", [1.0, 2000.0]),
    "sketched without strength": _set("sketched", [None]),
    # sums
    "terms that are null": _terms(None),
    "terms that are an object": _terms({}),
    "a sum of nothing": _terms([]),
    "a sum of null": _terms([None]),
    "a sum of sums": _terms([{"strength": 1, "terms": []}]),
    "a sum of 65": _terms([layer(strength=1.0, factors=[])] * 65),
    "a sum of 100,000": _terms([layer(strength=1.0, factors=[])] * 100_000),
    "a rule that nobody knows": _layers({"x": {"terms": [layer(strength=1.0, factors=[])], "rule": "average"}}),
    "a rule that is a list": _layers({"x": {"terms": [layer(strength=1.0, factors=[])], "rule": []}}),
    "a projection of three": _layers({"x": {"terms": [layer(strength=1.0, factors=[])] * 3, "rule": "projection"}}),
    "a product of nothing": _layers({"x": {"terms": [], "rule": "product"}}),
    "a sum with more": _layers({"x": {"terms": [layer(strength=1.0, factors=[])], "bias": 1}}),
    "a strength that is null": _sum(strength=None),
    "a strength that is text": _sum(strength="1"),
    "a strength that is true": _sum(strength=True),
    "a strength that is NaN": _sum(strength=math.nan),
    "a strength that is infinite": _sum(strength=-math.inf),
    "a strength of 1e300": _sum(strength=1e300),
    "a strength of 10^400": _sum(strength=10**400),
    "terms of two widths": _two_widths,
    # metadata
    "metadata in a list": _document(metadata=[]),
    "metadata in text": _document(metadata="x"),
    "a title in a list": _metadata(title=["fox"]),
    "a title that is a number": _metadata(title=7),
    "a title of 10 MB": _metadata(title="x" * 10_000_000),
    "a title with half a character": _metadata(title="fox \udc00"),
    "a trigger phrase in an object": _metadata(trigger_phrase={"a": 1}),
    "a trigger phrase with half a character": _metadata(trigger_phrase="\ud83d"),
    "a text of 65 KiB": _metadata(note="é" * 33_000),
    "a base model in a list": _metadata(base_model=[]),
    "a base model in text": _metadata(base_model="sdxl"),
    "a base model's name in a list": _metadata(base_model={"name": []}),
    "settings in a list": _metadata(settings=[1]),
    "settings in text": _metadata(settings="fast"),
    "versions in a list": _metadata(versions=["1"]),
    "steps below zero": _metadata(steps=-3),
    "steps in text": _metadata(steps="3"),
    "a seed of 2^64": _metadata(seed=2**64),
    "a seed of 0.5": _metadata(seed=0.5),
    "parents in an object": _metadata(parents={}),
    "parents that are null": _metadata(parents=[None]),
    "parents of nothing": _metadata(parents=[{}]),
    "a parent's hash that is a number": _metadata(parents=[{"hash": 7}]),
    "a parent's strength in text": _metadata(parents=[{"hash": "0" * 64, "strength": "x"}]),
    "100,000 parents": _metadata(parents=[{"hash": "0" * 64}] * 100_000),
    "a resolution in a list": _metadata(resolution=[512, 512]),
    "20,000 values": _metadata(note=list(range(20_000))),
    "metadata 20 levels deep": _metadata(note=json.loads(_nested(20))),
    "a graph that is no text": _metadata(workflow={"nodes": []}),
    "a graph of 17 MiB": lambda good: Adapter(
        good.tensors, good.document, {**good.flat, "workflow": "x" * (17 * 2**20)}
    ).to_bytes(),
}
MONSTERS = FILES | TENSORS | DOCUMENTS

#: Odd, but nothing wrong with them: they load and go through everything.
ODDITIES: dict[str, Monster] = {
    "a title of 60,000 characters": _metadata(title="W" * 60_000),
    "a title with colours and lines": _metadata(title="\x1b[31mred\x1b[0m\r\nSODA: all is well\x07"),
    "a trigger phrase of lines": _metadata(trigger_phrase="a\n" * 20_000),
    "a title from right to left": _metadata(title="\u202egnp.exe"),
    "a title of a null": _metadata(title="fox\0"),
    "a name of a base model with lines": _metadata(base_model={"name": "a\nb\x1b[2J", "family": "$x^{2$"}),
    "nothing known of anything": _document(
        metadata=dict.fromkeys(
            ("title", "trigger_phrase", "base_model", "settings", "steps", "seed", "date", "versions", "parents")
        )
    ),
    "no metadata at all": lambda good: good.edited(lambda d: d.pop("metadata") and None).to_bytes(),
    "metadata of its own": _metadata(note={"a": [1, 2.5, None, True, {"b": "c"}]}),
    "metadata 14 levels deep": _metadata(note=json.loads(_nested(14))),
    "16 factors of 2": lambda good: _plain([2] * 16),
    "five factors of 16": lambda good: _plain([16] * 5),
    "a factor of 600": lambda good: _plain([2, 600]),
    "one factor of 1": lambda good: _plain([1]),
    "nothing but a shift": lambda good: _plain([], shift=5),
    "nothing at all": lambda good: _plain([]),
    "a shift of 100,000": lambda good: _plain([], shift=100_000),
    "a huge shift": _tensor("soda_shift", lambda t: t + 3e38),
    "huge sketches": _tensor("soda_probe", lambda t: t + 3e38),
    "a strength of 1000": _sum(strength=1000),
    "1,000 layers": _many_layers(1000),
    "other flat keys": lambda good: Adapter(
        good.tensors, good.document, {**good.flat, "modelspec.title": "x" * 10**6, "a\nb": "\x1b"}
    ).to_bytes(),
}
