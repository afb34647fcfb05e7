# SPDX-License-Identifier: GPL-3.0-or-later
"""Merged adapters in the host.

Whatever the method, a merge is an adapter like any other: the tests of every path of the host are run on one of each.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from . import test_apply, test_blocks_and_hooks
from .conftest import make_family

pytestmark = pytest.mark.host
SHIFTS = {"train": "shift only", "steps": 8, "shift_lr": 0.05}

#: By how it is merged: settings of the style's training, and of the merge.
MERGES = {
    "delta": ({}, {}),
    "normalised": ({}, {}),
    "projection": ({}, {}),
    "tsv": ({}, {}),
    "geodesic": ({}, {"balance": 0.6, "magnitude": "mean norm"}),
    "geodesic, other factor sizes": ({"factor_count": 3}, {"method": "geodesic"}),
    "parts": ({"train": "shift only"}, {}),
}


@pytest.fixture(scope="module")
def subject(host):
    return make_family(host, "sd15-min")


@pytest.fixture(scope="module")
def style(host):
    """A style's adapter by the settings of its training."""
    known = {}

    def trained(**settings):
        key = str(settings)
        if key not in known:
            known[key] = make_family(host, "sd15-min", seed=6, **settings).adapter
        return known[key]

    return trained


@pytest.fixture(scope="module", params=MERGES)
def family(host, subject, style, request):
    """A merge of an adapter with everything on and of a style, in the place of the trained adapter."""
    training, options = MERGES[request.param]
    options = {"method": request.param} | options
    merged = host.core("merge").merge(subject.adapter, style(**training), 0.8, 0.6, **options)
    return SimpleNamespace(preset="sd15-min", model=subject.model, adapter=merged)


@pytest.mark.parametrize(("strength", "mode"), [(0.5, "linear"), (-1.0, "geodesic")])
def test_loaded_weights_are_the_merged_ones(host, family, strength, mode) -> None:
    test_apply.test_loaded_weights_are_the_adapted_ones(host, family, strength, mode)


def test_partial_load_gives_the_same_picture(host, family) -> None:
    test_apply.test_partial_load_gives_the_same_picture(host, family, 0.5)


def test_strengths_by_blocks_hold(host, family) -> None:
    test_blocks_and_hooks.test_strengths_by_blocks_in_a_full_and_a_partial_load(host, family, "linear")


def test_hooks_give_the_weights_of_the_patch(host, family) -> None:
    test_blocks_and_hooks.test_hooks_give_the_weights_of_the_patch_and_follow_keyframes(host, family, "geodesic")


def test_model_merge_and_checkpoint_save_carry_it_too(host, family, tmp_path) -> None:
    test_apply.carried_by_model_merge_and_checkpoint(host, family, tmp_path)


def test_saved_and_loaded_it_is_the_same_change(host, family) -> None:
    apply, folders = host.core("host.apply").apply_adapter, host.core("host.folders")
    name = folders.save_adapter(family.adapter, "t/merged")
    with torch.inference_mode():
        first, _ = apply(family.model, None, family.adapter)
        second, _ = apply(family.model, None, folders.load_adapter(name))
    found, again = test_apply.live_weights(first, family.adapter), test_apply.live_weights(second, family.adapter)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_it_fits_a_base_of_half_the_bits_and_no_other(host, family) -> None:
    """The base check goes with every part of a merge."""
    errors, apply, base = host.core("errors"), host.core("host.apply").apply_adapter, host.core("host.base")
    half, other = host.model("sd15-min", "f16", dtype=torch.float16), host.model("sd15-min")
    with torch.inference_mode():
        apply(half, None, family.adapter)
        for name in family.adapter.layers:
            weight = base.pristine_weight(other, base.weight_key(name))
            weight.copy_(weight.flip(0))
        with pytest.raises(errors.BaseMismatchError, match="does not fit"):
            apply(other, None, family.adapter)


@pytest.fixture(scope="module")
def parents(host):
    return [make_family(host, "sd15-min", seed=seed, **SHIFTS) for seed in (1, 2)]


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_a_geodesic_merge_fits_the_base_of_its_parents_and_no_other(host, parents, caplog, strength) -> None:
    """Its parents' shifts lie below many a singular value, where their changes do not add up as the shifts do."""
    apply, base, merge = host.core("host.apply").apply_adapter, host.core("host.base"), host.core("merge").merge
    subject, style = (family.adapter for family in parents)
    merged = merge(subject, style, strength, strength, "geodesic")
    name, layer = next(iter(merged.layers.items()))
    model, other = parents[0].model, host.model("sd15-min")
    weight = base.base_weight(model, name)
    clipped = weight.spectrum("svd").S + layer.shift < 0
    assert clipped.float().mean() > 0.01
    with torch.inference_mode(), caplog.at_level("WARNING"):
        apply(model, None, merged)
        assert not caplog.records
        for name in merged.layers:
            live = base.pristine_weight(other, base.weight_key(name))
            live += 0.02 * live.std() * torch.randn(live.shape, generator=torch.Generator().manual_seed(0)).to(live)
        apply(other, None, merged, ignore_base_check=True)
    (warning,) = [record.message for record in caplog.records]
    assert "spectral part off by" in warning
