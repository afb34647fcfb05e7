# SPDX-License-Identifier: GPL-3.0-or-later
"""What users see of the demo's base model, looked at by the demo's judge."""

from __future__ import annotations

import pytest

from benchmarks.lib import evaluate
from benchmarks.lib.bed import Bed
from demo.world_model import checkpoint

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def bed(host, tmp_path_factory):
    return Bed(checkpoint(tmp_path_factory.mktemp("base")))


def test_the_base_paints_what_it_is_asked_for(bed) -> None:
    prompts = evaluate.plain_prompts(16)
    verdict, _ = evaluate.judged(bed, None, prompts, seed=5, steps=12)
    for said, wanted in (
        (verdict.kinds(), [p.kind for p in prompts]),
        (verdict.styles(), [p.style for p in prompts]),
        (verdict.backgrounds(), [p.background for p in prompts]),
    ):
        assert evaluate.accuracy(said, wanted) > 0.6, list(zip(said, wanted, strict=True))
