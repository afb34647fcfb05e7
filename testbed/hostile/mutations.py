# SPDX-License-Identifier: GPL-3.0-or-later
"""Good files with a few random changes, drawn by hypothesis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from testbed.hostile.file import Adapter, pack, unpack

Draw = Callable[[Any], Any]

#: What stands where something else should.
HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 17, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.0, 0.5, -0.5, 1e300, 1e-300,
    math.nan, math.inf, -math.inf, "", "svd", "qr", "x", "24", "\x1b[2J\n", "\ud800", "é" * 40_000, "../../x", [], [[]],
    [1], [2, 3], [0], [None], ["a"], [2] * 20, [1] * 30, {}, {"a": 1}, {"terms": []}, {"hash": 1}, {"strength": 1},
    "tsv", "product", [1e400], [{}], {"": {}},
]  # fmt: skip
HOSTILE_NUMBERS = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-38, 0.0, 1.0, -1.0, 1.001, 100.0]


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values of some JSON but itself."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*here, key)
        yield from places(inner, (*here, key))


def mutated(draw: Draw, document: Any) -> None:
    """One change of some JSON, in place."""
    path = draw(st.sampled_from(list(places(document))))
    *where, key = path
    place = document
    for step in where:
        place = place[step]
    hostile = deepcopy(draw(st.sampled_from(HOSTILE)))
    match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "double", "rename"])):
        case "replace":
            place[key] = hostile
        case "remove":
            del place[key]
        case "double" if isinstance(place, list):
            place[key:key] = deepcopy([place[key]] * draw(st.sampled_from([1, 3, 70])))
        case "rename" if isinstance(place, dict):
            place[draw(st.sampled_from(["terms", "factors", "", "x\n", "title", "parents", "strength"]))] = place.pop(
                key
            )
        case _ if isinstance(place, dict):
            new = draw(
                st.sampled_from(["terms", "rule", "knots", "strength", "digest", "parents", "title", "x", "workflow"])
            )
            place[new] = hostile
        case _:
            place.append(hostile)


def mutated_json(draw: Draw, files: list[bytes]) -> bytes:
    taken = Adapter.of(draw(st.sampled_from(files))).without_hashes()
    for _ in range(draw(st.integers(1, 3))):
        if isinstance(taken.document, dict) and taken.document:
            mutated(draw, taken.document)
    return taken.to_bytes()


def mutated_header(draw: Draw, files: list[bytes]) -> bytes:
    return mutated_header_of(draw, *Adapter.of(draw(st.sampled_from(files))).without_hashes().header())


def mutated_header_of(draw: Draw, header: dict[str, Any], data: bytes) -> bytes:
    """Any safetensors file, by its header."""
    for _ in range(draw(st.integers(1, 2))):
        mutated(draw, header)
    return pack(header, data)


def mutated_tensors(draw: Draw, files: list[bytes]) -> bytes:
    taken = Adapter.of(draw(st.sampled_from(files))).without_hashes()
    key = draw(st.sampled_from(sorted(taken.tensors)))
    tensor = taken.tensors[key]
    match draw(st.sampled_from(["value", "value", "scale", "add", "flip", "swap"])):
        case "value":
            tensor.flatten()[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(HOSTILE_NUMBERS))
        case "scale":
            tensor.mul_(draw(st.sampled_from(HOSTILE_NUMBERS)))
        case "add":
            tensor.add_(draw(st.sampled_from(HOSTILE_NUMBERS)))
        case "flip":
            taken.tensors[key] = tensor.flip(0)
        case "swap":
            other = draw(st.sampled_from(sorted(taken.tensors)))
            taken.tensors[key], taken.tensors[other] = taken.tensors[other], tensor
    return taken.to_bytes()


def mutated_bytes(draw: Draw, files: list[bytes], header: int | None = None) -> bytes:
    """
    Args:
        header: where the part ends that is changed more often; that of a safetensors file by default.
    """
    octets = bytearray(draw(st.sampled_from(files)))
    if header is None:
        header = len(octets) - len(unpack(bytes(octets))[1])
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(octets), draw(st.sampled_from([8, header, len(octets)])))
        place = draw(st.integers(0, max(0, end - 1)))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "remove"])):
            case "flip":
                octets[place : place + 1] = bytes(o ^ (1 << draw(st.integers(0, 7))) for o in octets[place : place + 1])
            case "set":
                octets[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del octets[place:]
            case "insert":
                octets[place:place] = draw(
                    st.sampled_from([b"\0", b"[[[[", b"{", b'"', b"NaN", b"\xff" * 9, b"0" * 50])
                )
            case "remove":
                del octets[place : place + draw(st.integers(1, 40))]
    return bytes(octets)
