# SPDX-License-Identifier: GPL-3.0-or-later
"""Out of SODA through the real server: Export SODA as LoRA, Load LoRA, and a checkpoint by the host's own save node."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from soda_core import SodaAdapter
from soda_core.cli import main
from testbed.checkpoints import BASE_NAME
from testbed.server import PromptError

from .conftest import STRENGTHS, Graph, base, sampling, training_graph

EXPORT = {"naming": "comfy", "strength": 1.0, "mode": "linear", "dtype": "float16", "ignore_base_check": False}


@pytest.fixture(scope="module")
def trained(server) -> str:
    """Name of an adapter that was trained through the server."""
    before = set(server.soda.rglob("*.safetensors"))
    server.queue(training_graph(server, filename_prefix="fox", shift_lr=0.05, rotation_lr=0.02).nodes)
    (file,) = set(server.soda.rglob("*.safetensors")) - before
    return file.name


@pytest.fixture(scope="module")
def original(server) -> dict[str, torch.Tensor]:
    return load_file(server.base / "models" / "checkpoints" / BASE_NAME)


def exporting(name: str, prefix: str, checkpoint: str = BASE_NAME, **settings) -> Graph:
    g = Graph()
    g.model = base(g)
    g.load = g.add("SODALoadAdapter", model=(g.model, 0), adapter_name=name, **STRENGTHS)
    other = g.model if checkpoint == BASE_NAME else base(g, checkpoint)
    g.export = g.add(
        "SODAExportLoRA", adapter=(g.load, 2), model=(other, 0), filename_prefix=prefix, **{**EXPORT, **settings}
    )
    return g


def export(server, name: str, prefix: str, **settings) -> tuple[str, dict[str, torch.Tensor]]:
    """What the node shows, and the tensors of the new file in the loras folder."""
    folder = server.base / "models" / "loras"
    before = set(folder.rglob("*.safetensors"))
    g = exporting(name, prefix, **settings)
    entry = server.queue(g.nodes)
    (file,) = set(folder.rglob("*.safetensors")) - before
    return entry["outputs"][g.export]["text"][0], load_file(file)


@pytest.mark.parametrize(
    ("by", "starts"),
    [
        ({"by": "rank", "by.rank": 4}, "rank-4_00001_.safetensors: "),
        ({"by": "error", "by.error": 0.3}, "error-0.3_00001_.safetensors: "),
        ({"by": "size_mb", "by.size_mb": 0.4}, "size_mb-0.4_00001_.safetensors: "),
        ({"by": "exact"}, "exact_00001_.safetensors: "),
    ],
)
def test_every_way_to_say_a_size_makes_a_file_and_a_report(server, trained, by, starts) -> None:
    report, tensors = export(server, trained, starts.split("_0")[0], **by)
    assert report.startswith(starts) and "leaves out" in report and "transformer_blocks" in report
    assert all(t.dtype == torch.float16 for t in tensors.values())
    if by["by"] == "exact":
        assert all(name.endswith(".diff") for name in tensors)
    else:
        assert "rank 128 would leave out" in report
    if by["by"] == "size_mb":
        assert sum(t.nbytes for t in tensors.values()) < 0.4e6


def test_load_lora_paints_with_the_file(server, trained) -> None:
    """The picture of the exact form is that of the adapter; a LoRA of rank 1 is another, and neither is the base."""
    _, _ = export(server, trained, "paint-full", by="exact", dtype="float32")
    export(server, trained, "paint-one", **{"by": "rank", "by.rank": 1})

    def picture(loader: str, **inputs) -> torch.Tensor:
        g = Graph()
        model = base(g)
        source = (g.add(loader, model=(model, 0), **inputs), 0) if loader else (model, 0)
        node = sampling(g, source, model)
        (image,) = server.images(server.queue(g.nodes), node)
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()

    soda = picture("SODALoadAdapter", adapter_name=trained, **STRENGTHS)
    full, one = (
        picture("LoraLoaderModelOnly", lora_name=f"paint-{kind}_00001_.safetensors", strength_model=1.0)
        for kind in ("full", "one")
    )
    assert (full - soda).abs().max() <= 1
    assert (one - soda).abs().max() > 1 and (picture("") - soda).abs().max() > 1
    assert "lora key not loaded" not in server.log


def test_a_checkpoint_by_the_hosts_own_save_node_holds_the_adapted_weights(server, trained, original) -> None:
    g = Graph()
    model = base(g)
    load = g.add("SODALoadAdapter", model=(model, 0), adapter_name=trained, **STRENGTHS)
    g.add("CheckpointSave", model=(load, 0), clip=(model, 1), vae=(model, 2), filename_prefix="checkpoints/merged")
    server.queue(g.nodes)
    (file,) = (server.base / "output" / "checkpoints").glob("merged*.safetensors")
    merged = load_file(file)
    adapter = SodaAdapter.load(server.soda / trained)
    for name in adapter.layers:
        key = f"model.{name}.weight"
        expected = adapter.adapt(name, original[key].float())
        torch.testing.assert_close(merged[key].float(), expected, atol=1e-3, rtol=2e-3)  # stored in half precision
        assert (merged[key].float() - original[key].float()).abs().max() > 5e-3
    others = [k for k in original if k.startswith("model.") and k[len("model.") : -7] not in adapter.layers]
    assert others and all(torch.equal(merged[k].float(), original[k].float()) for k in others)


def test_the_file_says_what_managers_show_and_brings_its_graph(server, trained) -> None:
    export(server, trained, "said", **{"by": "rank", "by.rank": 2})
    with safe_open(server.base / "models" / "loras" / "said_00001_.safetensors", "pt") as file:
        header = dict(file.metadata())
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.trigger_phrase"] == "sks fox" and header["ss_base_model_version"] == "SD 1.5"
    assert header["ss_sd_model_name"] == BASE_NAME and len(header["ss_new_sd_model_hash"]) == 64
    assert "SODAExportLoRA" in header["prompt"] and str(server.base) not in str(header)
    assert 0 < json.loads(header["soda_export"])["error"] < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "exact", "naming": "diffusers"}, "diffusers reads no full differences"),
        ({"by": "exact", "strength": 0.0}, "strength must be a number other than 0"),
        ({"by": "exact", "filename_prefix": "../out"}, "is not allowed"),
        ({"by": "exact", "checkpoint": "sd3.safetensors"}, "no layer of fox_00001 is in this base model"),
        ({"by": "rank", "by.rank": 0}, "rank"),
    ],
)
def test_what_cannot_be_exported_says_why_and_writes_nothing(server, trained, settings, message) -> None:
    folder = server.base / "models" / "loras"
    before = set(folder.rglob("*"))
    prefix = settings.pop("filename_prefix", "bad")
    with pytest.raises(PromptError, match=message):
        server.queue(exporting(trained, prefix, **settings).nodes)
    assert set(folder.rglob("*")) == before


def test_the_command_makes_the_same_lora_as_the_node(server, trained, tmp_path, capsys) -> None:
    _, tensors = export(server, trained, "same", **{"by": "rank", "by.rank": 4})
    checkpoint = server.base / "models" / "checkpoints" / BASE_NAME
    path = tmp_path / "same.safetensors"
    assert main(["export", str(server.soda / trained), str(checkpoint), "-o", str(path), "--rank", "4"]) == 0
    found = load_file(path)
    assert set(found) == set(tensors)
    for name in (n.removesuffix(".alpha") for n in tensors if n.endswith(".alpha")):
        up, down = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
        mine, yours = (found[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
        assert (up @ down - mine @ yours).norm() < 0.02 * (up @ down).norm(), name
    capsys.readouterr()
    assert main(["check", str(server.soda / trained), str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spectral_error"] < 1e-3
