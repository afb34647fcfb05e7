# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is read ends in an adapter that can be used, shown, merged and saved, or in an error that names the file."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soda_core import SodaAdapter, SodaError, fileformat, merge
from soda_core.errors import FileFormatError
from soda_core.layer import AdaptedLayer
from soda_core.merge import interference
from soda_core.report.inspection import metadata_text, picture
from soda_core.report.merge import interference_report
from testbed.hostile import DOCUMENTS, MONSTERS, ODDITIES, Adapter, pack, unpack

#: Seconds and bytes no call comes near, on any machine: only what hangs or bursts does.
PATIENCE, MEMORY = 120, 2 * 2**30
#: Numbers in a weight up to which it is made and adapted.
SMALL = 100_000
Draw = Callable[[Any], Any]
DATA = Path(__file__).parents[1] / "data"


@contextmanager
def bounded() -> Iterator[None]:
    """Fails what takes longer, or more memory, than anything may."""

    def give_up(*_: object) -> None:
        raise AssertionError(f"still running after {PATIENCE} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before, held = signal.signal(signal.SIGALRM, give_up), peak_memory()
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert peak_memory() - held < MEMORY


def peak_memory() -> int:
    """Bytes this process ever held at once."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def exercise(path: Path, other: SodaAdapter, guard: Callable[[Callable[[], Any]], Any]) -> bool:
    """Load a file and do all that can be done with it; whether it loaded.

    Args:
        other: what to merge it with.
        guard: calls each of these, and says what it may raise.
    """
    adapter: SodaAdapter | None = guard(lambda: SodaAdapter.load(path))
    if adapter is None:
        return False
    assert isinstance(repr(adapter), str) and "\n" not in adapter.label + adapter.trained_on
    for name, layer in list(adapter.layers.items())[:8]:
        guard(lambda layer=layer, name=name: use(name, layer))
    text = guard(lambda: metadata_text(adapter))
    assert text is None or json.loads(text)["layers"] == len(adapter.layers)
    for method in ("delta", "geodesic"):
        merged = guard(lambda method=method: merge(adapter, other, 0.5, 0.25, method))
        if merged is not None:
            guard(lambda merged=merged: interference_report(adapter, other, interference(adapter, other), merged))
            guard(lambda merged=merged: fileformat.to_bytes(merged.layers, merged.metadata))
    written = guard(lambda: fileformat.to_bytes(adapter.layers, adapter.metadata))
    path.write_bytes(written)
    assert SodaAdapter.load(path).identity() == adapter.identity(), "what loads can be saved, and is the same"
    return True


def use(name: str, layer: AdaptedLayer) -> None:
    """Adapt a weight as the layer wants it."""
    term = layer.terms[0][1]
    shape = layer.shape or (layer.rank or 4, max(layer.in_features or 1, layer.rank or 1))
    if math.prod(shape) > SMALL:
        return
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    layer.check_shape(name, shape)
    layer.check_base(weight)
    for mode in ("linear", "geodesic"):
        adapted = term.adapt(weight, 0.5, mode)
        assert adapted.shape == weight.shape
    layer.adapt(weight)


def only_errors_of_ours(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except SodaError:
        return None


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of small matrices: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def good(tmp_path, adapter) -> Adapter:
    adapter[1].save(tmp_path / "good.safetensors")
    return Adapter.of((tmp_path / "good.safetensors").read_bytes())


# ---------------------------------------------------------------------------------------------------------- handmade


@pytest.mark.parametrize("name", MONSTERS)
def test_a_monster_is_refused_by_name(tmp_path, good, name) -> None:
    path = tmp_path / "monster\n\x1b[31m.safetensors"
    path.write_bytes(MONSTERS[name](good))
    with bounded(), pytest.raises(FileFormatError) as caught:
        SodaAdapter.load(path)
    message = str(caught.value)
    assert message.startswith("monster\\n\\x1b[31m.safetensors: ") and message.isprintable() and len(message) < 1000
    if name in DOCUMENTS:
        assert "its metadata is not valid" in message, "the schema tells, before a tensor is touched"


KEYS = {
    "26 factors of 1": r"layers\['x'\].factors has 26 entries, at most 16",
    "a factor of 1 more": r"layers\['x'\].factors\[2\] must be a whole number between 2 and",
    "20,001 layers": "layers has 20,001 entries, at most 20,000",
    "a strength that is NaN": "NaN, which is not a number",
    "a strength of 1e300": r"layers\['x'\].terms\[1\].strength must be a number between -1000 and 1000, found 1e\+300",
    "JSON with 1e999": r"metadata\['a'\] must be a finite number",
    "a base model's name in a list": "metadata.base_model.name must be a text, found a list of 0",
    "a title with half a character": "metadata.*half a character",
    "a tensor of halves": "net.block.0.to_k.soda_shift.*F16.*expected.*F32",
    "a layer with more": r"layers\['net.block.0.to_q'\] has 'bias', which this pack does not know",
    "metadata 20 levels deep": "nested more than 16 levels",
    "a text of 65 KiB": "metadata.*66,000 bytes, at most 65,536",
}


@pytest.mark.parametrize("name", KEYS)
def test_the_error_says_which_key_and_why(tmp_path, good, name) -> None:
    (tmp_path / "x.safetensors").write_bytes(MONSTERS[name](good))
    with pytest.raises(FileFormatError, match=KEYS[name]):
        SodaAdapter.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ODDITIES)
def test_an_oddity_can_be_used_for_everything(tmp_path, adapter, good, name) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(ODDITIES[name](good))
    with bounded():
        assert exercise(path, adapter[1], only_errors_of_ours)
        image = picture(SodaAdapter.load(path))
    assert image.shape[1] <= 2000 and bool(image.isfinite().all())


def test_what_is_not_a_file_is_refused_and_does_not_block(tmp_path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    paths = ["folder.safetensors", "loop.safetensors", "nul\0.safetensors", "x" * 5000, "gone.safetensors"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        paths.append("pipe.safetensors")
    for path in paths:
        with bounded(), pytest.raises(FileFormatError, match=r"is not a file|cannot be read"):
            SodaAdapter.load(tmp_path / path)


BAD_METADATA: dict[str, Any] = {
    "half a character": {"trigger_phrase": "\ud83d"},
    "half a character in a graph": {"workflow": "\ud83d"},
    "a graph that is no text": {"prompt": {"a": 1}},
    "a text of 65 KiB": {"title": "é" * 33_000},
    "a base model in text": {"base_model": "sdxl"},
    "NaN": {"settings": {"rotation_lr": math.nan}},
    "infinity": {"settings": {"rotation_lr": math.inf}},
    "a huge number": {"seed": 10**5000},
    "keys of two kinds": {"note": {1: 2, "a": 3}},
    "an object of its own": {"note": object()},
    "parents without a hash": {"parents": [{"title": "a"}]},
}


@pytest.mark.parametrize("case", [*BAD_METADATA, "itself"])
def test_metadata_that_no_file_could_hold_is_refused_before_anything_is_written(tmp_path, adapter, case) -> None:
    metadata = BAD_METADATA.get(case)
    if metadata is None:
        metadata = {}
        metadata["note"] = metadata
    fileformat.check_metadata(adapter[1].metadata)
    with pytest.raises(FileFormatError):
        fileformat.check_metadata(metadata)
    with pytest.raises(FileFormatError):
        SodaAdapter(adapter[1].layers, metadata).save(tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def change_strength(document: Any) -> None:
    document["layers"]["net.conv"]["terms"][0]["strength"] = 0.75


def swap_decomposition(document: Any) -> None:
    document["layers"]["net.conv"]["terms"][0]["decomposition"] = "svd"


@pytest.mark.parametrize("change", [change_strength, swap_decomposition])
def test_a_changed_strength_or_decomposition_fails_the_digest(tmp_path, adapter, change) -> None:
    """The hash that managers read covers tensors only."""
    merged = merge(adapter[1], adapter[1], 0.5, 0.25)
    path = tmp_path / "merged.safetensors"
    merged.save(path)
    taken = Adapter.of(path.read_bytes())
    change(taken.document)
    path.write_bytes(taken.to_bytes())
    with pytest.raises(FileFormatError, match="merged.safetensors: its layers do not match its own hash"):
        SodaAdapter.load(path)
    path.write_bytes(taken.without_hashes().to_bytes())
    assert SodaAdapter.load(path).layers["net.conv"].terms[0] is not None, "an edit that is not hidden is the user's"


def test_a_title_may_be_edited(tmp_path, good) -> None:
    """It decides nothing, and managers offer it."""
    good.document["metadata"]["title"] = "wolf"
    (tmp_path / "x.safetensors").write_bytes(good.to_bytes())
    assert SodaAdapter.load(tmp_path / "x.safetensors").title == "wolf"


# ------------------------------------------------------------------------------------------------------------ mutated

#: What stands where something else should.
HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 17, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.0, 0.5, -0.5, 1e300, 1e-300,
    math.nan, math.inf, -math.inf, "", "svd", "qr", "x", "24", "\x1b[2J\n", "\ud800", "é" * 40_000, "../../x", [], [[]],
    [1], [2, 3], [0], [None], ["a"], [2] * 20, [1] * 30, {}, {"a": 1}, {"terms": []}, {"hash": 1}, {"strength": 1},
    [1e400], [{}], {"": {}},
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
            new = draw(st.sampled_from(["terms", "knots", "strength", "digest", "parents", "title", "x", "workflow"]))
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
    header, data = Adapter.of(draw(st.sampled_from(files))).without_hashes().header()
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


def mutated_bytes(draw: Draw, files: list[bytes]) -> bytes:
    octets = bytearray(draw(st.sampled_from(files)))
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


KINDS = {"json": mutated_json, "header": mutated_header, "tensors": mutated_tensors, "bytes": mutated_bytes}
#: 2,400 files in all, the same ones every time.
MUTATIONS = {"json": 1200, "header": 400, "tensors": 400, "bytes": 400}


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_end_in_an_adapter_or_an_error_of_ours(tmp_path, adapter, kind) -> None:
    sources = [DATA / "adapter_v1.safetensors", DATA / "adapter_v1_merged.safetensors", tmp_path / "new.safetensors"]
    adapter[1].save(sources[-1])
    files = [source.read_bytes() for source in sources]
    path = tmp_path / "mutated.safetensors"
    loaded = []

    @settings(
        max_examples=MUTATIONS[kind], derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        path.write_bytes(KINDS[kind](data.draw, files))
        with bounded():
            loaded.append(exercise(path, adapter[1], only_errors_of_ours))

    run()
    assert len(loaded) >= 0.9 * MUTATIONS[kind], "hypothesis had enough of them"
    assert loaded.count(False) >= len(loaded) / 10, "some are refused"
    if kind != "bytes":  # (whose hashes tell)
        assert loaded.count(True) >= 10, "and what gets through is used for all that comes after loading"


def test_the_corpus_is_what_it_says(good) -> None:
    """A monster of a good file and one change: without the change it loads."""
    file = io.BytesIO(good.to_bytes())
    assert Adapter.of(file.getvalue()).document == good.document
    assert len({monster(good) for monster in MONSTERS.values()}) == len(MONSTERS), "no two are the same"
