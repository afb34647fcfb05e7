# SPDX-License-Identifier: GPL-3.0-or-later
"""Merged adapters in the host."""

from __future__ import annotations

import pytest
import torch

from .conftest import make_family

pytestmark = pytest.mark.host
SHIFTS = {"train": "shift only", "steps": 8, "shift_lr": 0.05}


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
