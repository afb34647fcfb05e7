# SPDX-License-Identifier: GPL-3.0-or-later
"""A base weight, and what is kept of it: decompositions, deltas."""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from soda_core import merge
from soda_core.adapter import SodaAdapter
from soda_core.base_weight import BaseWeight, fingerprint
from soda_core.delta_cache import DeltaCache
from soda_core.errors import BaseMismatchError
from soda_core.spectral import Decomposition, Spectrum, decompose
from soda_core.spectrum_store import SpectrumStore

from .conftest import random_layer


def random_weights(count: int) -> list[BaseWeight]:
    return [BaseWeight(torch.randn(32, 32, generator=torch.Generator().manual_seed(i))) for i in range(count)]


class TestBaseWeight:
    @pytest.mark.parametrize("kernel", [1, 3])
    def test_is_known_in_any_memory_format(self, kernel) -> None:
        """``--force-channels-last`` stores convolutions so."""
        W = torch.randn(16, 8, kernel, kernel)
        assert fingerprint(W) == fingerprint(W.to(memory_format=torch.channels_last)) != fingerprint(2 * W)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
    def test_computes_in_float32_or_better_and_leaves_the_weight_alone(self, dtype) -> None:
        W = torch.randn(6, 4, 3, 3).to(dtype)
        base = BaseWeight(W)
        assert base.matrix.shape == (6, 36) and base.shape == W.shape and base.stored.dtype == dtype
        assert base.matrix.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(base.matrix.to(dtype).float(), W.flatten(1).float())

    def test_finds_each_decomposition_once_and_only_when_asked_for(self) -> None:
        found: list[Decomposition] = []

        def find(weight: BaseWeight, kind: Decomposition) -> Spectrum:
            found.append(kind)
            return weight.decompose(kind)

        W, layer = random_layer()
        _, qr = random_layer(decomposition="qr")
        turned = random_layer(shift=None)[1]
        base = BaseWeight(W, find=find)
        turned.adapt(base)
        assert found == [], "a rotation needs none"
        summed = merge(SodaAdapter({"x": layer}), SodaAdapter({"x": layer}), 0.5, 0.25).layers["x"]
        assert torch.equal(summed.delta(base), summed.delta(W))
        assert layer.check_base(base) == layer.check_base(W)
        assert found == ["svd"]
        qr.adapt(base)
        assert found == ["svd", "qr"]

    def test_decompositions_at_hand_are_used(self) -> None:
        W, layer = random_layer()
        other = decompose(torch.randn(24, 30), "svd")
        assert not torch.allclose(layer.adapt(BaseWeight(W, spectra=[other])), layer.adapt(W), atol=1e-3)
        assert torch.equal(layer.adapt(BaseWeight(W, spectra=[decompose(W, "svd")])), layer.adapt(W))


class TestSpectrumStore:
    @pytest.mark.parametrize("kind", ["svd", "qr"])
    def test_gives_what_decomposing_gives_from_memory_and_from_disk(self, tmp_path, kind) -> None:
        (weight,) = random_weights(1)
        store = SpectrumStore(tmp_path / "s", memory_limit=2**20, disk_limit=2**20)
        fresh, remembered = store.get(weight, kind), store.get(weight, kind)
        store.clear_memory()
        read = store.get(weight, kind)
        expected = decompose(weight.stored, kind).tensors()
        for spectrum in (fresh, remembered, read):
            assert all(torch.equal(spectrum.tensors()[name], value) for name, value in expected.items())
        assert store.computed == 1
        assert store.get(weight, kind, torch.bfloat16).like.dtype == torch.bfloat16

    def test_keeps_within_its_limits(self, tmp_path, caplog) -> None:
        weights = random_weights(6)
        entry = weights[0].decompose("svd").nbytes()
        store = SpectrumStore(tmp_path / "s", memory_limit=2 * entry, disk_limit=4 * entry)
        for weight in weights:
            store.get(weight, "svd")
        assert len(store) == 2
        kept = list((tmp_path / "s").iterdir())
        assert 2 <= len(kept) <= 4 and all(path.suffix == ".safetensors" for path in kept), "nothing unfinished"
        store.get(weights[-1], "svd")
        assert store.computed == 6
        store.get(weights[0], "svd")
        assert store.computed == 7, "the oldest was dropped"
        assert any("SODA_CACHE_DISK_GB" in r.message for r in caplog.records), "and the user was told"

    def test_a_full_disk_costs_a_warning(self, tmp_path, caplog) -> None:
        (tmp_path / "s").write_text("a file where the folder should be")
        store = SpectrumStore(tmp_path / "s", memory_limit=2**20, disk_limit=2**20)
        assert store.get(*random_weights(1), "svd").like.shape == (32, 32)
        assert any("could not keep" in r.message for r in caplog.records)

    @pytest.mark.parametrize("kind", ["svd", "qr"])
    @pytest.mark.parametrize("damage", ["zeros", "nan", "shape", "dtype", "no digest", "cut", "empty", "flip"])
    def test_an_entry_that_does_not_fit_is_computed_anew_with_one_line(self, tmp_path, caplog, kind, damage) -> None:
        (weight,) = random_weights(1)
        expected = SpectrumStore(tmp_path, 0, 2**20).get(weight, kind).tensors()
        (path,) = tmp_path.iterdir()
        with safe_open(path, "pt") as file:
            digest = file.metadata()
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        basis = "Vh" if kind == "svd" else "Qh"
        if damage in ("cut", "empty", "flip"):
            data = bytearray(path.read_bytes())
            data[-9] ^= 64
            path.write_bytes({"cut": data[:-100], "empty": b"", "flip": data}[damage])
        else:
            changed = {
                "zeros": torch.zeros_like, "nan": lambda t: t * float("nan"), "shape": lambda t: t[:16].contiguous(),
                "dtype": lambda t: t.half(), "no digest": lambda t: t,
            }[damage](tensors[basis])  # fmt: skip
            save_file({**tensors, basis: changed}, path, None if damage == "no digest" else digest)
        caplog.clear()
        for _ in range(2):
            store = SpectrumStore(tmp_path, 0, 2**20)
            again = store.get(weight, kind).tensors()
            assert all(torch.equal(again[name], value) for name, value in expected.items())
            said = [record.message for record in caplog.records]
            assert len(said) == 1 and "computed anew" in said[0] and path.name in said[0]
        assert store.computed == 0, "what was computed anew is kept"

    def test_a_weight_that_is_not_finite_is_refused_by_name(self, tmp_path) -> None:
        W = torch.randn(8, 8)
        W[3, 3] = float("nan")
        for kind in ("svd", "qr"):
            with pytest.raises(BaseMismatchError, match=r"\(8, 8\) holds NaN"):
                SpectrumStore(tmp_path / "s", 0, 2**20).get(BaseWeight(W), kind)
        assert not (tmp_path / "s").exists()

    def test_what_is_left_unfinished_counts_and_goes_after_a_day(self, tmp_path) -> None:
        weights = random_weights(3)
        entry = weights[0].decompose("svd").nbytes()
        left = tmp_path / ".x.safetensors.0123abcd.partial"
        left.write_bytes(bytes(3 * entry))
        store = SpectrumStore(tmp_path, 0, 4 * entry)
        assert left.exists(), "somebody may be writing it"
        for weight in weights:
            store.get(weight, "svd")
        assert len(list(tmp_path.glob("*.safetensors"))) <= 1
        os.utime(left, (0, 0))
        SpectrumStore(tmp_path, 0, 4 * entry)
        assert not left.exists()


class TestDeltaCache:
    def test_a_held_delta_is_not_computed_again(self) -> None:
        W, layer = random_layer()
        cache = DeltaCache()
        delta, check = cache.get(layer, BaseWeight(W))
        again, check_again = cache.get(layer, BaseWeight(W.clone()))
        assert again is delta and check_again == check == layer.check_base(W) and cache.computed == 1
        assert torch.equal(delta, layer.delta(W))

    def test_what_decides_the_change_is_told_apart(self) -> None:
        (W, layer), (_, other) = random_layer(), random_layer(seed=3)
        cache = DeltaCache()
        ways = [
            (layer, W, 1.0, "linear"), (other, W, 1.0, "linear"), (layer, W + 1e-3, 1.0, "linear"),
            (layer, W, 0.5, "linear"), (layer, W, 0.5, "geodesic"),
        ]  # fmt: skip
        held = [cache.get(layer, BaseWeight(W), *how)[0] for layer, W, *how in ways]
        assert cache.computed == len(ways)
        for delta, (layer, W, *how) in zip(held, ways, strict=True):
            assert torch.equal(delta, layer.delta(W, *how))

    def test_deltas_live_as_long_as_somebody_holds_them(self) -> None:
        W, layer = random_layer()
        cache = DeltaCache()
        held = cache.get(layer, BaseWeight(W))
        del held
        gc.collect()
        cache.get(layer, BaseWeight(W))
        assert cache.computed == 2

    def test_it_forgets_what_was_asked_for_longest_ago(self) -> None:
        W, layer = random_layer()
        weights = [BaseWeight(W + i) for i in range(3)]
        cache = DeltaCache(size=2)
        held = [cache.get(layer, weights[0]), cache.get(layer, weights[1])]
        held += [cache.get(layer, weights[0]), cache.get(layer, weights[2])]
        assert len(cache) == 2 and cache.computed == 3
        held.append(cache.get(layer, weights[0]))
        assert cache.computed == 3
        held.append(cache.get(layer, weights[1]))
        assert cache.computed == 4

    @pytest.mark.parametrize(
        ("stored", "kept"), [(torch.float16, torch.float16), (torch.float8_e4m3fn, torch.bfloat16)]
    )
    def test_keeps_a_delta_in_the_dtype_of_its_weight(self, stored, kept) -> None:
        W, layer = random_layer()
        delta, _ = DeltaCache().get(layer, BaseWeight(W.to(stored)))
        assert delta.dtype == kept and delta.device.type == "cpu"

    def test_a_change_that_is_not_finite_is_refused(self) -> None:
        """It would give a black picture and no word."""
        W, layer = random_layer(shift=0.0)
        huge = replace(layer, shift=torch.full((24,), 1e6), sketches=None)
        DeltaCache().get(huge, BaseWeight(W))
        with pytest.raises(BaseMismatchError, match="NaN or infinite in torch.float16"):
            DeltaCache().get(huge, BaseWeight(W.half()))
