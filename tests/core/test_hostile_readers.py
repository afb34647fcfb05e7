# SPDX-License-Identifier: GPL-3.0-or-later
"""The other readers of files: states of stopped runs, the authors' ``.pt``, checkpoints. They raise ours or nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from soda_core import SodaError
from soda_core.interop import authors_pt
from soda_core.interop.checkpoint import CheckpointWeights
from soda_core.tensor_file import tensor_hash
from soda_core.training.settings import TrainSettings
from soda_core.training.state import RunState
from testbed.hostile import pack, unpack
from testbed.hostile.bounds import bounded
from testbed.hostile.mutations import HOSTILE, Draw, mutated, mutated_bytes, mutated_header_of

#: Of each kind of file, the same ones every time.
MUTATIONS = 300


def mutated_files(count: int, make: Callable[[Draw], bytes], read: Callable[[bytes], Any]) -> list[bool]:
    """Whether each mutated file was read; fails where one ends in anything but an error of ours."""
    through = []

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        file = make(data.draw)
        with bounded():
            try:
                read(file)
            except SodaError:
                through.append(False)
            else:
                through.append(True)

    run()
    assert len(through) >= 0.9 * count
    return through


# ------------------------------------------------------------------------------------------------------------ states


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    tensors = {"losses": torch.ones(3), "parameters.rotation_8": torch.eye(8)[None], "moments.0": torch.zeros(4)}
    conditions = {"training_dtype": "fp32", "base model": "ab12", "latents": "cd34"}
    RunState(TrainSettings(), conditions, tensors, {"started_from": {"title": "x", "hash": "0" * 64}}).save(path)
    return path.read_bytes()


def test_states(tmp_path, state) -> None:
    path = tmp_path / "state.safetensors"

    def make(draw: Draw) -> bytes:
        kind = draw(st.sampled_from(["document", "document", "header", "bytes"]))
        if kind == "bytes":
            return mutated_bytes(draw, [state])
        header, data = unpack(state)
        if kind == "header":
            return mutated_header_of(draw, header, data)
        document = json.loads(header["__metadata__"]["soda_state"])
        for _ in range(draw(st.integers(1, 3))):
            if isinstance(document, dict) and document:
                mutated(draw, document)
        header["__metadata__"]["soda_state"] = json.dumps(document)
        return pack(header, data)

    def read(file: bytes) -> None:
        path.write_bytes(file)
        found = RunState.load(path)
        assert found.step >= 0 and dict(found.notes) is not None
        found.check(TrainSettings(), {"training_dtype": "fp32"})

    through = mutated_files(MUTATIONS, make, read)
    assert not all(through)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", '{"format_version": 1}', "null", '"x"'])
def test_a_state_that_is_other_json(tmp_path, text) -> None:
    tensors = {"losses": torch.ones(1)}
    path = tmp_path / "state.safetensors"
    path.write_bytes(save(tensors, {"soda_state": text}))
    with pytest.raises(SodaError, match=r"state.safetensors' cannot be read"):
        RunState.load(path)


@pytest.mark.parametrize(("part", "value"), [
    ("conditions", []), ("conditions", {"latents": [1]}), ("notes", 1), ("settings", None), ("settings", []),
])  # fmt: skip
def test_a_state_with_parts_of_another_kind(tmp_path, part, value) -> None:
    tensors = {"losses": torch.ones(1)}
    document = {
        "format_version": 1, "settings": TrainSettings().as_metadata(), "conditions": {}, "notes": {},
        "digest": tensor_hash(tensors), part: value,
    }  # fmt: skip
    path = tmp_path / "state.safetensors"
    path.write_bytes(save(tensors, {"soda_state": json.dumps(document)}))
    with pytest.raises(SodaError, match="cannot be read"):
        RunState.load(path)


# ------------------------------------------------------------------------------------------------------ the authors'


def test_authors_files(tmp_path) -> None:
    path = tmp_path / "peft_10.pt"
    first, *_ = authors_pt.parts()
    good: dict[str, Any] = {first: [torch.eye(4), torch.zeros(4), torch.eye(2), torch.eye(2)] * 4}

    def make(draw: Draw) -> bytes:
        content: Any = deepcopy(good)
        for _ in range(draw(st.integers(1, 3))):
            if isinstance(content, dict) and content:
                mutated(draw, content)
        if draw(st.integers(0, 9)) == 0:
            content = draw(st.sampled_from(HOSTILE))
        buffer = io.BytesIO()
        torch.save(content, buffer)
        file = buffer.getvalue()
        return mutated_bytes(draw, [file], header=len(file)) if draw(st.booleans()) else file

    def read(file: bytes) -> None:
        path.write_bytes(file)
        authors_pt.read(path, "svd")

    assert not any(mutated_files(MUTATIONS, make, read)), "none of these is whole"


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints(tmp_path) -> None:
    path = tmp_path / "base.safetensors"
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    good = save({f"{name}.weight": torch.eye(8), f"{name}.bias": torch.zeros(8)}, {"format": "pt"})

    def make(draw: Draw) -> bytes:
        if draw(st.booleans()):
            return mutated_bytes(draw, [good])
        return mutated_header_of(draw, *unpack(good))

    def read(file: bytes) -> None:
        path.write_bytes(file)
        weights = CheckpointWeights(Path(path))
        assert all(isinstance(weights[layer].fingerprint, str) for layer in weights)

    through = mutated_files(MUTATIONS, make, read)
    assert any(through) and not all(through)
