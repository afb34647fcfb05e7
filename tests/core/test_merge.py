# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from soda_core import SodaAdapter, SodaLayer, merge
from soda_core.base_weight import BaseWeight
from soda_core.errors import MergeError, SettingsError
from soda_core.interference import interference, rotation_distance
from soda_core.linalg import orthogonality_residual
from soda_core.report.merge import interference_report
from soda_core.spectral import decompose

from .conftest import random_layer, random_rotation

#: Those that take any two adapters; of these the ones that do not tell subject from style, and that share one strength.
METHODS = ["delta", "geodesic", "normalised", "projection", "tsv"]
SYMMETRIC = ["delta", "geodesic", "normalised", "tsv"]
ADDITIVE = ["delta", "geodesic"]


def adapters(decomposition="svd", style_sizes=(5, 6)) -> tuple[torch.Tensor, SodaAdapter, SodaAdapter]:
    W, subject = random_layer(decomposition=decomposition)
    _, style = random_layer(sizes=style_sizes, decomposition=decomposition, seed=11)
    style = style.with_base_check(W)
    return W, SodaAdapter({"x": subject}, {"title": "fox"}), SodaAdapter({"x": style}, {"title": "ink"})


@pytest.mark.parametrize("decomposition", ["svd", "qr"])
def test_delta_adds_both_changes_to_the_base(decomposition) -> None:
    W, a, b = adapters(decomposition)
    expected = W + 0.8 * (a.adapt("x", W) - W) + 0.6 * (b.adapt("x", W) - W)
    torch.testing.assert_close(merge(a, b, 0.8, 0.6).adapt("x", W), expected)


@pytest.mark.parametrize("method", SYMMETRIC)
def test_order_does_not_matter(method) -> None:
    W, a, b = adapters()
    torch.testing.assert_close(merge(a, b, 0.8, 0.6, method).adapt("x", W), merge(b, a, 0.6, 0.8, method).adapt("x", W))


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_strength_leaves_the_other(method) -> None:
    W, a, b = adapters()
    torch.testing.assert_close(merge(a, b, 1.0, 0.0, method).adapt("x", W), a.adapt("x", W))
    torch.testing.assert_close(merge(a, b, 0.0, 0.0, method).adapt("x", W), W)


@pytest.mark.parametrize("method", ADDITIVE)
def test_two_halves_make_one(method) -> None:
    W, a, _ = adapters()
    torch.testing.assert_close(merge(a, a, 0.5, 0.5, method).adapt("x", W), a.adapt("x", W), atol=1e-6, rtol=1e-5)


def test_geodesic_stays_a_small_soda_layer() -> None:
    W, a, b = adapters()
    merged = merge(a, b, 0.7, 1.4, "geodesic")
    layer = merged.layers["x"]
    assert isinstance(layer, SodaLayer) and merged.num_parameters == a.num_parameters
    assert all(orthogonality_residual(R) < 1e-5 for R in layer.factors)
    assert layer.check_base(W).spectral_error < 1e-5
    assert (merged.adapt("x", W) - W).norm() > 0.1


def on_a_steep_base(*seeds: int, knots: int | None, heights: float = 0.1) -> tuple[torch.Tensor, list[SodaAdapter]]:
    """A weight with small singular values, and adapters of it whose shifts a ReLU clips there."""
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(48, 48, generator=g))[0] for _ in range(2))
    W = (U * torch.arange(1, 49).float() ** -1.5) @ V.T
    parents = []
    for seed in seeds:
        values = -heights * torch.rand(knots or 48, generator=torch.Generator().manual_seed(seed))
        curve = {"shift": decompose(W, "svd").knots(knots) @ values, "knots": values} if knots else {"shift": values}
        parents.append(SodaAdapter({"x": SodaLayer("svd", [random_rotation(48)], **curve).with_base_check(W)}))
    return W, parents


def saved(adapter: SodaAdapter, folder) -> SodaAdapter:
    adapter.save(folder / "merged.safetensors")
    return SodaAdapter.load(folder / "merged.safetensors")


@pytest.mark.parametrize("knots", [None, 6])
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (2.0, 2.0), (0.5, 0.0), (0.7, -1.0)])
def test_a_geodesic_merge_passes_on_its_base_where_a_relu_clips(tmp_path, knots, strengths) -> None:
    W, (a, b) = on_a_steep_base(1, 2, knots=knots)
    assert (decompose(W, "svd").S + a.layers["x"].shift < 0).any(), "it must clip"
    merged = saved(merge(a, b, *strengths, "geodesic"), tmp_path)
    check = merged.layers["x"].check_base(W)
    assert check.spectral_error < 1e-4 and check.base_distance == 0 and check.spectral_norm > 0.01
    assert merged.layers["x"].check_base(on_a_steep_base(knots=None)[0].flip(0)).spectral_error > 0.5
    again = saved(merge(merged, merge(a, b, 0.3, 0.3, "geodesic"), 1.0, 2.0, "geodesic"), tmp_path)
    assert again.layers["x"].check_base(W).spectral_error < 1e-4


def test_the_check_of_a_merge_costs_its_file_little_where_shifts_are_curves() -> None:
    _, (a, b) = on_a_steep_base(1, 2, knots=6)
    _, (c, d) = on_a_steep_base(1, 2, knots=None)
    for one, other, size in ((a, b, 6), (c, d, 48)):
        terms = merge(one, other, 0.7, 1.0, "geodesic").layers["x"].sketches.terms
        assert [(strength, len(shift)) for strength, shift in terms] == [(0.7, size), (1.0, size)]
    assert merge(a, b, 1.0, 0.0, "geodesic").layers["x"].sketches.terms == ()
    _, *qr = adapters("qr")
    assert merge(*qr, 0.7, 1.0, "geodesic").layers["x"].sketches.terms == ()


def test_nothing_is_said_of_a_base_where_the_sketch_is_of_nothing_known() -> None:
    """Curves that were merged and then meet another shift: their values are not known without the base."""
    _, (a, b) = on_a_steep_base(1, 2, knots=6)
    W, (c,) = on_a_steep_base(3, knots=None)
    assert merge(merge(a, b, method="geodesic"), c, method="geodesic").layers["x"].check_base(W) is None
    assert merge(a, c, 0.7, 1.0, "geodesic").layers["x"].check_base(W).spectral_error < 1e-4


MERGED_AGAIN = [  # method of a merge, and of the next; what the message says
    ("delta", "geodesic", "already a delta merge.*use method 'delta'"),
    ("delta", "projection", "already a delta merge"),
    ("normalised", "delta", "already a normalised merge.*by method 'normalised'"),
    ("tsv", "normalised", "already a tsv merge.*by method 'tsv'"),
    ("projection", "projection", "already a projection merge.*one after the other"),
    ("tsv", "parts", "already a tsv merge"),
]


@pytest.mark.parametrize(("first", "second", "said"), MERGED_AGAIN)
def test_a_merge_that_cannot_be_merged_further_says_what_can_be_done(first, second, said) -> None:
    _, a, b = adapters()
    with pytest.raises(MergeError, match=said):
        merge(merge(a, b, method=first), a, method=second)


def test_a_product_is_merged_no_further_but_passes_through_where_it_meets_nothing() -> None:
    _, a, b = adapters(style_sizes=(2, 15))
    product = merge(a, b, method="geodesic")
    other = SodaAdapter({"y": a.layers["x"]})
    assert merge(product, other).layers["x"] is product.layers["x"]
    for parents, strength in (((product, other), 0.5), ((product, a), 1.0)):
        with pytest.raises(MergeError, match="already a geodesic or parts merge.*one after the other"):
            merge(*parents, strength)


WRONG = {
    "a method": ({"method": "average"}, "unknown merge method 'average'.*delta"),
    "a magnitude": ({"magnitude": "loud"}, "unknown magnitude 'loud'.*orthofuse"),
    "a magnitude of another method": ({"magnitude": "mean norm"}, "belongs to method 'geodesic', not to 'delta'"),
    "a balance": ({"balance": 1.5}, "balance must be a number from 0.*1.5"),
    "no number": ({"balance": float("nan")}, "balance must be a number from 0.*nan"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_answered_with_right_ones(case) -> None:
    _, a, b = adapters()
    options, said = WRONG[case]
    with pytest.raises(SettingsError, match=said):
        merge(a, b, **options)


def test_parts_need_a_rotation_and_a_spectrum_that_stands_alone() -> None:
    _, a, b = adapters()
    rotation, shift = (SodaAdapter({"x": random_layer(**made)[1]}) for made in ({"shift": None}, {"sizes": ()}))
    for subject, style, said in (
        (a, b, "ink was trained with a rotation as well.*'x'.*shift only"),
        (shift, shift, "takes the rotation of"),
        (rotation, rotation, "takes the shift of"),
    ):
        with pytest.raises(MergeError, match=said):
            merge(subject, style, method="parts")


def test_merging_a_merge_flattens() -> None:
    W, a, b = adapters()
    nested = merge(merge(a, b, 0.5, 0.5), a, 1.0, 0.5)
    torch.testing.assert_close(nested.adapt("x", W), merge(a, b, 1.0, 0.5).adapt("x", W))
    assert len(nested.layers["x"].terms) == 3


@pytest.mark.parametrize("method", METHODS)
def test_layers_of_one_parent_pass_through_at_its_strength(method) -> None:
    W, a, b = adapters()
    wide = SodaAdapter({**a.layers, "only": a.layers["x"]}, a.metadata)
    merged = merge(wide, b, 1.0, 0.6, method)
    torch.testing.assert_close(merged.adapt("only", W), a.adapt("x", W))
    assert set(merged.layers) == {"x", "only"}


@pytest.mark.parametrize("method", [*ADDITIVE, "parts"])
def test_ablations_merge(method) -> None:
    """A rotation-only subject with a shift-only style."""
    W, subject = random_layer(shift=None)
    _, style = random_layer(sizes=())
    a, b = SodaAdapter({"x": subject}), SodaAdapter({"x": style})
    merged = merge(a, b, 1.0, 1.0, method).adapt("x", W)
    assert (merged - W).norm() > max((a.adapt("x", W) - W).norm(), (b.adapt("x", W) - W).norm())


def test_different_bases_are_refused() -> None:
    _, a, _ = adapters()
    _, other = random_layer((24, 24), (4, 6))
    with pytest.raises(MergeError, match=r"\(24, 30\).*\(24, 24\)"):
        merge(a, SodaAdapter({"x": other}))


def curve(seed: int, count: int = 6) -> tuple[torch.Tensor, SodaLayer]:
    """A layer whose shift is a curve over its weight's singular values."""
    W, layer = random_layer()
    heights = 0.02 * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    shift = decompose(W, "svd").knots(count) @ heights
    return W, replace(layer, shift=shift, knots=heights).with_base_check(W)


def test_a_geodesic_merge_of_curves_on_one_base_is_a_curve() -> None:
    W, a = curve(1)
    _, b = curve(2)
    merged = merge(SodaAdapter({"x": a}), SodaAdapter({"x": b}), 0.7, -0.4, "geodesic").layers["x"]
    torch.testing.assert_close(merged.knots, 0.7 * a.knots - 0.4 * b.knots)
    torch.testing.assert_close(decompose(W, "svd").knots(6) @ merged.knots, merged.shift)


@pytest.mark.parametrize("other", ["other knots", "no knots", "other base", "unknown base"])
def test_knots_are_dropped_where_the_sum_is_not_known_to_be_a_curve(other) -> None:
    W, a = curve(1)
    b = {
        "other knots": lambda: curve(2, 5)[1],
        "no knots": lambda: replace(curve(2)[1], knots=None),
        "other base": lambda: curve(2)[1].with_base_check(W.bfloat16().float()),
        "unknown base": lambda: replace(curve(2)[1], sketches=None),
    }[other]()
    merged = merge(SodaAdapter({"x": a}), SodaAdapter({"x": b}), 0.7, 0.4, "geodesic").layers["x"]
    assert merged.knots is None
    torch.testing.assert_close(merged.shift, 0.7 * a.shift + 0.4 * b.shift)


def test_a_curve_that_meets_no_other_shift_stays_one() -> None:
    turned = random_layer(shift=None)[1]
    _, a = curve(1)
    for parents in ({"x": turned}, {}):
        merged = merge(
            SodaAdapter({"x": a}, {"base_model": {}}), SodaAdapter(parents, {"base_model": {}}), 0.5, 1.0, "geodesic"
        )
        assert torch.equal(merged.layers["x"].knots, 0.5 * a.knots)


def test_interference_of_an_adapter_with_itself_and_its_opposite() -> None:
    W, a, b = adapters()
    base = BaseWeight(W)
    same = interference(a, a, lambda name: base)["x"]
    assert same.cosine == pytest.approx(1.0, abs=1e-5) and same.shift_cosine == pytest.approx(1.0, abs=1e-5)
    assert same.rotation_distance == pytest.approx(0.0, abs=0.05)
    layer = a.layers["x"]
    opposite = SodaAdapter({"x": SodaLayer("svd", [], -layer.shift)})
    plain = SodaAdapter({"x": SodaLayer("svd", [], layer.shift)})
    assert interference(plain, opposite, lambda name: base)["x"].cosine < -0.9
    different = interference(a, b)["x"]
    assert different.cosine is None and abs(different.shift_cosine) < 0.6


def test_rotation_distance_matches_the_dense_logarithm() -> None:
    a = SodaLayer("svd", [random_rotation(3, 0.2, 1), random_rotation(4, 0.2, 2)])
    b = SodaLayer("svd", [random_rotation(3, 0.2, 3), random_rotation(4, 0.2, 4)])
    K = torch.kron(*a.factors).double().T @ torch.kron(*b.factors).double()
    angles = torch.linalg.eigvals(K).angle()
    dense = torch.rad2deg(angles.square().mean().sqrt())
    assert rotation_distance(a, b) == pytest.approx(float(dense), rel=1e-4)


def test_report_says_when_the_checkpoints_differ() -> None:
    def trained_on(adapter: SodaAdapter, name: str) -> SodaAdapter:
        return SodaAdapter(adapter.layers, {"base_model": {"name": name, "hash": name, "family": "SDXL 1.0"}})

    _, a, b = adapters()
    text = {
        name: interference_report(trained_on(a, "one"), trained_on(b, name), interference(a, b), merge(a, b))
        for name in ("one", "two")
    }
    assert "two checkpoints, one (SDXL 1.0) and two (SDXL 1.0)" in text["two"] and "careful" not in text["one"]
