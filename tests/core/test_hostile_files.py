# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is read ends in an adapter that can be used, shown, merged and saved, or in an error that names the file."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soda_core import SodaAdapter, SodaError, fileformat, merge
from soda_core.errors import FileFormatError
from soda_core.interference import interference
from soda_core.layer import AdaptedLayer
from soda_core.report.inspection import metadata_text, overview, picture, rows_of
from soda_core.report.merge import interference_report
from testbed.hostile import DOCUMENTS, MONSTERS, ODDITIES, Adapter
from testbed.hostile.bounds import bounded
from testbed.hostile.mutations import mutated_bytes, mutated_header, mutated_json, mutated_tensors

#: Numbers in a weight up to which it is made and adapted.
SMALL = 100_000
DATA = Path(__file__).parents[1] / "data"


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
    guard(lambda: overview(adapter, rows_of(adapter)))
    for method in ("delta", "geodesic", "parts"):
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
    "a rule that nobody knows": r"layers\['x'\].rule must be one of \['sum', 'normalised'.*found 'average'",
    "a projection of three": r"layers\['x'\].terms has 3 entries, at most 2",
    "a sum with more": r"layers\['x'\] has 'bias', which this pack does not know",
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
