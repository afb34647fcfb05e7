# SPDX-License-Identifier: GPL-3.0-or-later
"""Every merge method against its formula, evaluated in float64 with dense matrices; and through files.

Nothing here uses the core but to make the adapters: K is formed by ``torch.kron``, logarithms are the ones the
rotations were made from, projections and directions come from LAPACK. Tolerances: float32's rounding of a chain of
products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from soda_core import SodaAdapter, SodaLayer, SodaProduct, SodaSum, combine, merge
from soda_core.base_weight import BaseWeight
from soda_core.interop.lora import export
from soda_core.interop.lora_settings import LoraSettings

A, B = 0.8, 0.6  # strengths of the subject, of the style
ROUNDING = 2e-5


@dataclass
class Truth:
    """One adapter in float64: what it was made from."""

    generators: list[torch.Tensor]
    shift: torch.Tensor | None
    kind: str
    W: torch.Tensor

    def log_K(self, a: float = 1.0) -> torch.Tensor:
        """``log K^a``, dense: the sum of ``I ⊗ log R_i ⊗ I``."""
        total, left = 0.0, 1
        width = math.prod(len(g) for g in self.generators)
        for g in self.generators:
            right = width // left // len(g)
            total = total + torch.kron(torch.kron(eye(left), g), eye(right))
            left *= len(g)
        return a * total

    def K(self, a: float = 1.0) -> torch.Tensor:
        return torch.linalg.matrix_exp(self.log_K(a)) if self.generators else eye(self.W[0].numel())

    def spectral(self, a: float = 1.0) -> torch.Tensor:
        """``Δ(a shift)``."""
        W = self.W.flatten(1)
        if self.shift is None:
            return torch.zeros_like(W)
        if self.kind == "qr":
            Q, R = torch.linalg.qr(W.mT)
            rows = (Q * R.diagonal().sign()).mT
            return torch.cat([a * self.shift[:, None] * rows, W.new_zeros(W.shape[0] - len(rows), W.shape[1])])
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return (U * (torch.relu(S + a * self.shift) - S)) @ Vh

    def change(self) -> torch.Tensor:
        W = self.W.flatten(1)
        return (W + self.spectral()) @ self.K().mT - W

    def adapter(self) -> SodaAdapter:
        factors = [torch.linalg.matrix_exp(g).float() for g in self.generators]
        shift = None if self.shift is None else self.shift.float()
        return SodaAdapter({"x": SodaLayer(self.kind, factors, shift).with_base_check(self.W)})


def eye(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base(shape: tuple[int, ...] = (24, 30)) -> torch.Tensor:
    """Of float32 numbers, so that both evaluations see the same weight."""
    return (random(*shape, seed=0) / math.sqrt(math.prod(shape[1:]))).float().double()


def truth(W: torch.Tensor, sizes=(5, 6), kind="svd", seed=1, shift: float | None = 0.3, angle=0.3) -> Truth:
    raw = [random(k, k, seed=seed + 10 * i) for i, k in enumerate(sizes)]
    generators = [angle * (g - g.mT) / math.sqrt(len(g)) for g in raw]
    values = None if shift is None else shift * random(min(W.flatten(1).shape), seed=seed + 5)
    return Truth(generators, None if values is None else values.float().double(), kind, W)


def measured(adapter: SodaAdapter, W: torch.Tensor) -> torch.Tensor:
    return adapter.layers["x"].delta(W.float()).double().flatten(1)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = ROUNDING) -> None:
    assert expected.norm() > 0.05, "a change of nothing says nothing"
    assert float((found - expected).norm() / expected.norm()) < tolerance


def parents(shape=(24, 30), sizes=(5, 6), kind="svd"):
    W = base(shape)
    return W, truth(W, sizes, kind, 1), truth(W, sizes, kind, 2)


SHAPES = {"wide": ((24, 30), (5, 6)), "tall": ((40, 12), (3, 4)), "conv": ((8, 6, 3, 3), (6, 9))}


@pytest.fixture(params=SHAPES)
def shaped(request):
    return parents(*SHAPES[request.param])


# ------------------------------------------------------------------------------------------------ formulas on changes


def test_normalised_is_the_sum_at_the_size_of_the_larger_part(shaped) -> None:
    W, c, s = shaped
    D = A * c.change() + B * s.change()
    larger = max(A * c.change().norm(), B * s.change().norm())
    merged = merge(c.adapter(), s.adapter(), A, B, "normalised")
    close(measured(merged, W), D * larger / D.norm())
    assert D.norm() > 1.1 * larger, "there must be something to normalise"


def test_what_is_left_of_opposites_is_not_blown_up() -> None:
    W, c, _ = parents()
    for b, gain in ((-0.95, combine.MOST_GAIN), (-1.0, 0.0)):
        found = measured(merge(c.adapter(), c.adapter(), 1.0, b, "normalised"), W)
        torch.testing.assert_close(found, gain * (1 + b) * c.change(), atol=1e-5, rtol=1e-4)


def test_projection_is_the_regularised_inverse(shaped) -> None:
    W, c, s = shaped
    Dc, Ds, mu = c.change(), s.change(), 0.5
    sigma = torch.linalg.svdvals(Ds)
    nu = sigma.pow(4).sum() / sigma.pow(2).sum()
    kept = Dc @ torch.linalg.inv(eye(Dc.shape[1]) + mu / nu * Ds.mT @ Ds)
    close(measured(merge(c.adapter(), s.adapter(), A, B, "projection"), W), A * kept + B * Ds)
    assert 0.05 < (Dc - kept).norm() / Dc.norm() < 0.9


@pytest.mark.parametrize("shape", [(24, 30), (30, 24)])
def test_projection_is_np_lora_s_where_the_style_is_k_equal_directions(shape) -> None:
    Dc, k, mu = random(*shape, seed=3), 8, combine.SOFTNESS
    U, _, Vh = torch.linalg.svd(random(*shape, seed=4), full_matrices=False)
    Ds = 0.7 * U[:, :k] @ Vh[:k]
    np_lora = A * (Dc - mu / (1 + mu) * Dc @ Vh[:k].mT @ Vh[:k]) + B * Ds
    close(combine.projection([(A, Dc), (B, Ds)]), np_lora, 1e-12)


def dense_tsv(changes, k: int) -> torch.Tensor:
    parts = [(a, torch.linalg.svd(D, full_matrices=False)) for a, D in changes]

    def orthogonal(columns):
        P, _, Qh = torch.linalg.svd(torch.cat(columns, 1), full_matrices=False)
        return P @ Qh

    U = orthogonal([U[:, :k] for _, (U, _, _) in parts])
    V = orthogonal([Vh[:k].mT for _, (_, _, Vh) in parts])
    return U @ torch.diag(torch.cat([a * S[:k] for a, (_, S, _) in parts])) @ V.mT


def test_tsv_is_tsv_merge(shaped, monkeypatch) -> None:
    W, c, s = shaped
    monkeypatch.setattr(combine, "TSV_RANK", 3)
    merged = merge(c.adapter(), s.adapter(), A, B, "tsv")
    close(measured(merged, W), dense_tsv([(A, c.change()), (B, s.change())], 3), 2e-4)


def test_tsv_exports_as_a_lora_of_its_rank(monkeypatch) -> None:
    W, c, s = parents()
    monkeypatch.setattr(combine, "TSV_RANK", 3)
    for method, error in (("tsv", 0.0), ("delta", 0.5)):
        merged = merge(c.adapter(), s.adapter(), A, B, method)
        adapter = SodaAdapter({"diffusion_model.input_blocks.1.1.attn1.to_q": merged.layers["x"]}, merged.metadata)
        weights = {name: BaseWeight(W.float()) for name in adapter.layers}
        report = export(adapter, weights, LoraSettings(rank=6, dtype="float32")).report
        assert report.error == pytest.approx(error, abs=1e-4 if method == "tsv" else 0.3)


def test_tsv_of_directions_that_are_shared_makes_none_up() -> None:
    D = random(24, 30, seed=3)
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    shared = (U[:, :12] * S[:12]) @ Vh[:12]
    close(combine.tsv([(1.0, D), (1.0, D)]), shared, 1e-10)


@pytest.mark.parametrize("method", ["normalised", "tsv"])
def test_a_third_adapter_takes_part_in_the_same_formula(method, monkeypatch) -> None:
    monkeypatch.setattr(combine, "TSV_RANK", 3)
    W, c, s = parents()
    third = truth(W, (2, 15), "qr", 3)
    merged = merge(merge(c.adapter(), s.adapter(), A, B, method), third.adapter(), 0.5, 0.7, method)
    changes = [(0.5 * A, c.change()), (0.5 * B, s.change()), (0.7, third.change())]
    D = sum(a * D for a, D in changes)
    largest = max(a * D.norm() for a, D in changes)
    expected = {"normalised": lambda: D * largest / D.norm(), "tsv": lambda: dense_tsv(changes, 3)}[method]()
    close(measured(merged, W), expected, 2e-4)


# --------------------------------------------------------------------------------------------- formulas on the manifold


def geodesic(W, c, s, a, b, shift_a, shift_b) -> torch.Tensor:
    K = torch.linalg.matrix_exp(c.log_K(a) + s.log_K(b))
    shifted = Truth([], shift_a * c.shift + shift_b * s.shift, c.kind, W)
    return (W.flatten(1) + shifted.spectral()) @ K.mT - W.flatten(1)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("magnitude", ["constant", "orthofuse", "mean norm"])
def test_geodesic_along_the_balance(shaped, magnitude, t) -> None:
    W, c, s = shaped
    a, b = (1 - t) * A, t * B
    if magnitude == "mean norm":
        gain = (c.log_K(a).norm() + s.log_K(b).norm()) / (c.log_K(a) + s.log_K(b)).norm()
        of_shift = (a * c.shift.norm() + b * s.shift.norm()) / (a * c.shift + b * s.shift).norm()
        assert gain > 1.1 or t in (0, 1)
    else:
        gain = of_shift = {"constant": 2.0, "orthofuse": 1 + 4 * t * (1 - t)}[magnitude]
    expected = geodesic(W, c, s, gain * a, gain * b, of_shift * a, of_shift * b)
    merged = merge(c.adapter(), s.adapter(), A, B, "geodesic", balance=t, magnitude=magnitude)
    assert isinstance(merged.layers["x"], SodaLayer)
    close(measured(merged, W), expected)
    assert merged.layers["x"].check_base(W.float()).spectral_error < 1e-4


def test_the_balance_moves_the_strengths_of_every_method() -> None:
    W, c, s = parents()
    for t, magnitude, strengths in ((0.25, "constant", (1.5, 0.5)), (0.6, "orthofuse", (1.96 * 0.4, 1.96 * 0.6))):
        merged = merge(c.adapter(), s.adapter(), method="normalised", balance=t, magnitude=magnitude)
        plain = merge(c.adapter(), s.adapter(), *strengths, "normalised")
        close(measured(merged, W), measured(plain, W), 1e-6)
        assert [parent["strength"] for parent in merged.metadata["parents"]] == pytest.approx(strengths)


def test_opposite_rotations_are_not_blown_up() -> None:
    W, c, _ = parents()
    nearly = Truth([-0.95 * g for g in c.generators], None, "svd", W)
    turned = Truth(c.generators, None, "svd", W)
    merged = merge(turned.adapter(), nearly.adapter(), method="geodesic", magnitude="mean norm")
    left = Truth([combine.MOST_GAIN * 0.025 * g for g in c.generators], None, "svd", W)
    torch.testing.assert_close(measured(merged, W), left.change(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kinds", [("svd", "svd"), ("svd", "qr")])
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (A, B), (A, 0.0)])
def test_rotations_of_different_sizes_turn_one_after_the_other(kinds, strengths) -> None:
    W = base()
    c, s, (a, b) = truth(W, (5, 6), kinds[0], 1), truth(W, (2, 15), kinds[1], 2), strengths
    K = c.K(a) @ s.K(b)
    if (b and kinds[0] != kinds[1]) or b:
        spectral = a * c.spectral() + b * s.spectral()
    else:
        spectral = c.spectral(a)
    merged = merge(c.adapter(), s.adapter(), a, b, "geodesic")
    assert isinstance(merged.layers["x"], SodaProduct if b else SodaLayer)
    close(measured(merged, W), (W + spectral) @ K.mT - W)
    assert merged.layers["x"].check_base(W.float()).spectral_error < 1e-4
    assert merged.layers["x"].check_base(W.flip(0).float()).spectral_error > 0.5


@pytest.mark.parametrize("kind", ["svd", "qr"])
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (A, B), (-1.0, 2.0)])
def test_parts_are_the_subject_s_rotation_of_the_style_s_spectrum(kind, strengths) -> None:
    W, (a, b) = base(), strengths
    c, s = truth(W, shift=0.1), truth(W, (), kind, 2)
    assert kind == "qr" or (torch.linalg.svdvals(W) + s.shift < 0).any(), "it must clip"
    merged = merge(c.adapter(), s.adapter(), a, b, "parts")
    close(measured(merged, W), (W + b * s.spectral()) @ c.K(a).mT - W)
    layer = merged.layers["x"]
    assert isinstance(layer, SodaLayer) == (kind == "qr" or b == 1.0)
    assert merged.num_parameters == sum(g.numel() for g in c.generators) + s.shift.numel()
    assert layer.check_base(W.float()).spectral_error < 1e-4
    assert layer.check_base(W.flip(0).float()).spectral_error > 0.5


def test_parts_take_layers_that_only_one_has() -> None:
    W = base()
    c, s = truth(W), truth(W, (), "svd", 2)
    subject, style = c.adapter(), s.adapter()
    subject = SodaAdapter({**subject.layers, "turned": subject.layers["x"]}, subject.metadata)
    style = SodaAdapter({**style.layers, "shifted": style.layers["x"]}, style.metadata)
    layers = merge(subject, style, method="parts").layers
    assert set(layers) == {"x", "turned", "shifted"}
    close(layers["turned"].delta(W.float()).double(), W @ c.K().mT - W)
    close(layers["shifted"].delta(W.float()).double(), s.spectral())


# ------------------------------------------------------------------------------------------------------- through files


#: By what is merged how: the style's factor sizes, and what it becomes.
MERGES = {
    "delta": ((5, 6), "delta", SodaSum),
    "normalised": ((2, 15), "normalised", SodaSum),
    "projection": ((5, 6), "projection", SodaSum),
    "tsv": ((5, 6), "tsv", SodaSum),
    "geodesic": ((5, 6), "geodesic", SodaLayer),
    "product": ((2, 15), "geodesic", SodaProduct),
    "parts": ((), "parts", SodaProduct),
}


def made(case: str) -> tuple[torch.Tensor, SodaAdapter]:
    sizes, method, kind = MERGES[case]
    W = base()
    merged = merge(truth(W).adapter(), truth(W, sizes, seed=2).adapter(), A, B, method, balance=0.4)
    assert type(merged.layers["x"]) is kind
    return W.float(), merged


@pytest.mark.parametrize("case", MERGES)
def test_a_file_holds_the_merge_bit_for_bit(tmp_path, case) -> None:
    W, merged = made(case)
    merged.save(tmp_path / "one.safetensors")
    loaded = SodaAdapter.load(tmp_path / "one.safetensors")
    loaded.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert loaded.metadata == merged.metadata and repr(loaded.layers["x"]) == repr(merged.layers["x"])
    assert loaded.num_parameters == merged.num_parameters
    for mode in ("linear", "geodesic"):
        assert torch.equal(loaded.adapt("x", W, 0.7, mode), merged.adapt("x", W, 0.7, mode))


@pytest.mark.parametrize("case", MERGES)
def test_strength_scales_the_merged_change(case) -> None:
    W, merged = made(case)
    layer = merged.layers["x"]
    whole = layer.delta(W)
    for strength in (-1.0, 0.5, 3.0):
        torch.testing.assert_close(layer.delta(W, strength), strength * whole, atol=1e-6, rtol=1e-5)
    assert not layer.delta(W, 0.0).any() and not layer.delta(W, 0.0, "geodesic").any()
    torch.testing.assert_close(layer.delta(W, 1.0, "geodesic"), whole, atol=1e-6, rtol=1e-5)
    assert (layer.delta(W, 0.5, "geodesic") - 0.5 * whole).norm() > 1e-3 * whole.norm()
