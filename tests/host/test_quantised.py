# SPDX-License-Identifier: GPL-3.0-or-later
"""Bases in few bits: the host's own formats, and GGUF by way of other packs. Trained in the graph = loaded from disk.

Loading quantises the adapted weight again where the base is quantised, so that the two agree to the format's precision.
A GGUF base stays packed and the change is added to what is unpacked, so that they agree exactly.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from . import gguf_double
from .families import FAMILIES, close, data_of, predicted, trained

pytestmark = pytest.mark.host
ROW = FAMILIES[0]
#: By the host's name: how its layout is made, what the file says of it, and how far loaded and trained may be apart.
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "float8_e4m3fn": ({"scale": "recalculate"}, {}, 0.03),
    "float8_e5m2": ({"scale": "recalculate"}, {}, 0.06),
    "int8_tensorwise": ({}, {}, 0.02),
    "int8_tensorwise, rotated": (
        {"per_channel": True, "convrot": True, "convrot_groupsize": 64},
        {"convrot": True, "convrot_groupsize": 64},
        0.02,
    ),
    "mxfp8": ({}, {}, 0.03),
    "nvfp4": ({"scale": "recalculate"}, {}, 0.15),
    "convrot_w4a4": ({"convrot_groupsize": 64}, {"convrot_groupsize": 64}, 0.15),
}
#: Large enough to show above the rounding of 4 bits.
SETTINGS = {"steps": 4, "rotation_lr": 0.2, "shift_lr": 0.1, "loss": "dco"}


def quantised(host, name: str) -> Any:
    """A MODEL with the matrices of its block in that format, but for the one the host reads a width from."""
    import comfy.quant_ops as quant
    import comfy.sd

    made, said, _ = FORMATS[name]
    kind = name.partition(",")[0]
    if kind not in quant.QUANT_ALGOS:
        pytest.skip(f"this ComfyUI has no {kind}")
    layout, file = quant.QUANT_ALGOS[kind]["comfy_tensor_layout"], {}
    for key, W in load_file(host.checkpoint(ROW.preset)).items():
        if "transformer_blocks" not in key or "attn2.to_k" in key or W.ndim != 2:
            file[key] = W
            continue
        packed = quant.QuantizedTensor.from_float(W.float(), layout, **made)
        file |= {part.replace("._", "_"): value.contiguous() for part, value in packed.state_dict(key).items()}
        text = json.dumps({"format": kind, **said}).encode()
        file[f"{key.removesuffix('weight')}comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    path = host.base / "models" / "checkpoints" / f"quantised {name}.safetensors"
    save_file(file, path)
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]
    assert sum(type(W).__name__ == "QuantizedTensor" for W in model.model.parameters()) == 9
    return model


@pytest.mark.parametrize("name", FORMATS)
def test_the_hosts_formats_train_and_load(host, name) -> None:
    model = quantised(host, name)
    run = trained(host, ROW, model, **SETTINGS)
    adapter = host.core("host.folders").load_adapter(run.result.saved_name)
    with torch.inference_mode():
        patched, _ = host.core("host.apply").apply_adapter(model, None, adapter)
        applied = predicted(patched, run)
    off = (applied - run.prediction).norm() / run.prediction.norm()
    change = (run.prediction - run.untouched).norm() / run.prediction.norm()
    print(f"{name}: loaded off by {off:.2%}, of a change of {change:.2%}")
    assert off < FORMATS[name][2] and off < change / 2, "the change arrives"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_base_trains_and_loads_exactly(host, kind) -> None:
    path = host.base / "models" / "checkpoints" / f"{kind}.gguf"
    prefix = "model.diffusion_model."
    weights = load_file(host.checkpoint(ROW.preset))
    gguf_double.write(path, {k.removeprefix(prefix): W for k, W in weights.items() if k.startswith(prefix)}, kind)
    with torch.inference_mode():
        model = gguf_double.load(path)
    base = host.core("host.base")
    key = next(key for key in model.model_state_dict() if key.endswith("attn1.to_q.weight"))
    pristine = base.pristine_weight(model, key)
    off = (pristine.float() - weights[f"model.{key}"].float()).norm() / weights[f"model.{key}"].float().norm()
    assert pristine.is_floating_point() and 0 < off < (0.01 if kind == "Q8_0" else 0.15)
    run = trained(host, ROW, model, **SETTINGS)
    adapter = host.core("host.folders").load_adapter(run.result.saved_name)
    with torch.inference_mode():
        patched, _ = host.core("host.apply").apply_adapter(model, None, adapter)
        applied = predicted(patched, run)
        assert torch.equal(base.pristine_weight(patched, key), pristine), "also while it is patched"
        again = predicted(model, run)
    close(applied, run.prediction)
    close(again, run.untouched)
    assert (run.prediction - run.untouched).abs().max() > 1e-2


def test_what_nobody_can_unpack_is_refused_by_name(host) -> None:
    """As some packs keep 4 bits: bytes of another shape in an ordinary tensor."""
    import comfy.utils

    model = host.model(ROW.preset)
    run = trained(host, ROW, model)
    name = next(iter(run.result.adapter.layers))
    other = host.model(ROW.preset)
    with torch.inference_mode():
        layer = comfy.utils.get_attr(other.model, name)
        layer.weight = torch.nn.Parameter(torch.zeros(320, 320, dtype=torch.uint8), requires_grad=False)
        match = f"{name}.*uint8.*cannot read.*GGUF"
        with pytest.raises(host.core("errors").BaseMismatchError, match=match):
            host.core("host.apply").apply_adapter(other, None, run.result.adapter)
        training, stepped = host.core("host.training"), []
        settings = host.core("training.settings").TrainSettings(steps=1)
        with pytest.raises(host.core("errors").BaseMismatchError, match="uint8.*cannot read"):
            training.train_in_graph(
                other, data_of(host, ROW, model), settings, training.RunOptions(on_step=stepped.append)
            )
    assert not stepped
