# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import math
import os
import stat
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from soda_core import SodaAdapter, SodaError, SodaLayer, merge
from soda_core.errors import FileFormatError

from .conftest import random_layer

DATA = Path(__file__).parents[1] / "data"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, change_tensors=None, change_document=None) -> None:
    """Edit a file behind the pack's back, its hashes taken out."""
    tensors, header = load_file(path), metadata_of(path)
    header.pop("sshs_model_hash")
    document = json.loads(header["soda"])
    document.pop("digest")
    if change_tensors:
        change_tensors(tensors)
    if change_document:
        change_document(document)
    header["soda"] = json.dumps(document)
    save_file(tensors, path, header)


@pytest.fixture
def saved(tmp_path, adapter) -> Path:
    adapter[1].save(tmp_path / "fox.safetensors")
    return tmp_path / "fox.safetensors"


@pytest.mark.parametrize("method", [None, "delta"])
def test_round_trip_is_exact_and_byte_equal(tmp_path, adapter, method) -> None:
    weights, original = adapter
    if method:
        original = merge(original, original, 0.3, 0.4, method)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    original.save(first)
    loaded = SodaAdapter.load(first)
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()
    assert loaded.metadata == original.metadata
    for name, W in weights.items():
        for mode in ("linear", "geodesic"):
            assert torch.equal(loaded.adapt(name, W, 0.7, mode), original.adapt(name, W, 0.7, mode))
    assert loaded.identity() == original.identity()


def test_keys_can_be_guessed_and_are_frozen(saved) -> None:
    tensors = load_file(saved)
    assert sorted(k for k in tensors if k.startswith("net.block.0.to_q")) == [
        "net.block.0.to_q.soda_factor_0",
        "net.block.0.to_q.soda_factor_1",
        "net.block.0.to_q.soda_probe",
        "net.block.0.to_q.soda_shift",
    ]
    assert all(t.dtype == torch.float32 for t in tensors.values())


def test_metadata_for_managers(saved) -> None:
    header = metadata_of(saved)
    assert header["modelspec.trigger_phrase"] == "sks fox" and header["modelspec.title"] == "fox"
    assert header["modelspec.hash_sha256"] == "0x" + header["sshs_model_hash"]
    assert header["ss_network_module"] == "soda" and header["ss_seed"] == "7" and header["ss_steps"] == "3"
    assert header["ss_sd_model_name"] == "b" and json.loads(header["ss_tag_frequency"]) == {"soda": {"sks fox": 1}}
    assert json.loads(header["soda"])["format_version"] == 1
    data = saved.read_bytes()
    raw = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
    assert list(raw) == sorted(raw) and raw == header


def with_knots(layer: SodaLayer) -> SodaLayer:
    return replace(layer, knots=torch.linspace(-1, 1, 7))


@pytest.mark.parametrize("merged", [False, True])
def test_knots_travel_and_files_without_them_stay_as_they_were(tmp_path, adapter, merged) -> None:
    _, plain = adapter
    name = "net.block.0.to_q"
    curved = SodaAdapter({**plain.layers, name: with_knots(plain.layers[name])}, plain.metadata)
    if merged:
        plain, curved = (merge(a, a, 0.5, 0.25) for a in (plain, curved))
    plain.save(tmp_path / "plain.safetensors")
    curved.save(tmp_path / "curved.safetensors")
    keys = load_file(tmp_path / "curved.safetensors").keys() - load_file(tmp_path / "plain.safetensors").keys()
    prefixes = ["soda_term_0_", "soda_term_1_"] if merged else ["soda_"]
    assert keys == {f"{name}.{prefix}knots" for prefix in prefixes}
    assert "knots" not in metadata_of(tmp_path / "plain.safetensors")["soda"]
    loaded = SodaAdapter.load(tmp_path / "curved.safetensors")
    for _, term in loaded.layers[name].terms:
        assert torch.equal(term.knots, torch.linspace(-1, 1, 7))
    assert all(term.knots is None for _, term in loaded.layers["net.conv"].terms)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "curved.safetensors").read_bytes()
    fewer = (plain.layers[name].rank - 7) * len(loaded.layers[name].terms)
    assert loaded.num_parameters == plain.num_parameters - fewer, "of a curve its knots were trained"


BAD_KNOTS = {
    "infinite": ({"knots": torch.tensor([0.0, math.inf])}, "curve of layer 'x'.*infinite"),
    "two-dimensional": ({"knots": torch.zeros(2, 2)}, r"curve of layer 'x'.*\(2, 2\)"),
    "without a shift": ({"shift": None}, "no SVD shift"),
    "of a QR shift": ({"decomposition": "qr"}, "no SVD shift"),
}


@pytest.mark.parametrize("case", BAD_KNOTS)
def test_bad_knots_are_refused(tmp_path, case) -> None:
    change, match = BAD_KNOTS[case]
    layer = replace(with_knots(random_layer()[1]), **change)
    with pytest.raises(FileFormatError, match=match):
        SodaAdapter({"x": layer}).save(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["adapter_v1.safetensors", "adapter_v1_merged.safetensors"])
def test_files_of_version_one_stay_loadable(name, adapter) -> None:
    weights, expected = adapter
    if "merged" in name:
        expected = merge(expected, expected, 0.5, 0.25)
    loaded = SodaAdapter.load(DATA / name)
    assert loaded.trigger_phrase == "sks fox" or "merged" in name
    for layer, W in weights.items():
        torch.testing.assert_close(loaded.adapt(layer, W), expected.adapt(layer, W), atol=1e-5, rtol=0)
        assert loaded.layers[layer].check_base(W).spectral_error < 1e-4


def test_a_merge_names_its_parents(tmp_path, adapter) -> None:
    merged = merge(adapter[1], adapter[1], 0.8, 0.6)
    assert [p["hash"] for p in merged.metadata["parents"]] == [adapter[1].identity()] * 2
    merged.save(tmp_path / "m.safetensors")
    assert metadata_of(tmp_path / "m.safetensors")["modelspec.merged_from"] == "fox, fox"


def test_the_graph_travels_as_flat_keys(tmp_path, adapter) -> None:
    path = tmp_path / "g.safetensors"
    SodaAdapter(adapter[1].layers, {**adapter[1].metadata, "workflow": '{"nodes": []}'}).save(path)
    assert metadata_of(path)["workflow"] == '{"nodes": []}'
    assert SodaAdapter.load(path).metadata["workflow"] == '{"nodes": []}'


def set_key(key, value):
    return lambda tensors: tensors.__setitem__(key, value)


FACTOR = "net.block.0.to_q.soda_factor_0"
BAD_TENSORS = {
    "NaN": (set_key(FACTOR, torch.full((4, 4), float("nan"))), r"soda_factor_0.*NaN"),
    "infinite shift": (set_key("net.block.0.to_q.soda_shift", torch.full((24,), float("inf"))), "soda_shift.*infinite"),
    "off the manifold": (set_key(FACTOR, 1.1 * torch.eye(4)), "factor 0.*to_q.*not orthogonal.*0.21"),
    "misshapen": (set_key(FACTOR, torch.eye(5)), r"soda_factor_0.*\(5, 5\).*expected \(4, 4\)"),
    "wrong dtype": (set_key(FACTOR, torch.eye(4).half()), r"soda_factor_0.*F16, expected \(4, 4\) and F32"),
    "missing": (lambda t: t.pop(FACTOR), "soda_factor_0.*missing"),
    "unlisted": (set_key("stray", torch.zeros(1)), "stray"),
}
BAD_DOCUMENTS = {
    "newer version": (lambda d: d.__setitem__("format_version", 2), "version 2.*reads version 1"),
    "no version": (lambda d: d.pop("format_version"), "not valid.*no 'format_version'"),
    "no layers": (lambda d: d.__setitem__("layers", {}), "no layers"),
    "damaged layer": (lambda d: d["layers"]["net.conv"].pop("factors"), "not valid.*net.conv'. has no 'factors'"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_are_refused_by_name(saved, case) -> None:
    change, match = BAD_TENSORS[case]
    rewrite(saved, change_tensors=change)
    with pytest.raises(FileFormatError, match=f"(?s)fox.safetensors.*{match}"):
        SodaAdapter.load(saved)


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
def test_bad_metadata_is_refused_by_name(saved, case) -> None:
    change, match = BAD_DOCUMENTS[case]
    rewrite(saved, change_document=change)
    with pytest.raises(FileFormatError, match=f"fox.safetensors.*{match}"):
        SodaAdapter.load(saved)


def test_an_edited_file_fails_its_hash(saved) -> None:
    data = bytearray(saved.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(bytes(data[8 : 8 + size]))
    start = 8 + size + header["net.block.0.to_q.soda_shift"]["data_offsets"][0]
    data[start : start + 4] = struct.pack("<f", 0.125)
    saved.write_bytes(data)
    with pytest.raises(FileFormatError, match="hash"):
        SodaAdapter.load(saved)


def test_what_was_loaded_outlives_its_file(saved) -> None:
    """Tensors that are only mapped kill the process once somebody writes a shorter file in its place."""
    adapter = SodaAdapter.load(saved)
    before = adapter.identity()
    with open(saved, "r+b") as file:
        file.truncate(8)
    assert adapter.identity() == before


def test_a_truncated_file_is_refused(saved) -> None:
    saved.write_bytes(saved.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match="fox.safetensors.*complete safetensors"):
        SodaAdapter.load(saved)


def test_a_lora_is_recognised(tmp_path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"unet.to_q.lora_up.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(FileFormatError, match="not a SODA adapter.*LoRA.*lora_up"):
        SodaAdapter.load(path)


def test_a_missing_file_is_an_error_of_ours(tmp_path) -> None:
    with pytest.raises(SodaError, match=r"gone\.safetensors"):
        SodaAdapter.load(tmp_path / "gone.safetensors")


def test_nothing_is_written_that_could_not_be_read(tmp_path) -> None:
    _, layer = random_layer()
    bad = SodaLayer("svd", [1.5 * torch.eye(5), torch.eye(6)], layer.shift)
    for layers in ({}, {"x": bad}):
        with pytest.raises(FileFormatError):
            SodaAdapter(layers).save(tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


#: Run in the folder of "fox.safetensors"; by nobody where root runs the tests, because root may write anywhere.
SAVE_READ_ONLY = """
import os
from soda_core import SodaAdapter, SodaError
adapter = SodaAdapter.load("fox.safetensors")
adapter.save("fox.safetensors")  # imports what it needs, from where nobody may read
os.chmod(".", 0o555)
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    adapter.save("x.safetensors")
except SodaError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no such permissions")
def test_a_read_only_folder_is_an_error_that_says_so(saved) -> None:
    environment = {**os.environ, "PYTHONPATH": str(DATA.parents[1])}
    try:
        said = subprocess.run(
            [sys.executable, "-c", SAVE_READ_ONLY], cwd=saved.parent, env=environment, text=True, capture_output=True
        )
        assert said.stderr == "" and "cannot write 'x.safetensors'" in said.stdout and "writable" in said.stdout
        assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    finally:
        saved.parent.chmod(stat.S_IRWXU)


def test_full_disk_leaves_the_old_file_and_no_rest(saved, adapter, monkeypatch) -> None:
    before = saved.read_bytes()

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(SodaError, match="No space left"):
        adapter[1].save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
