# SPDX-License-Identifier: GPL-3.0-or-later
"""What users see: a short training on the demo's base model, looked at by the demo's judge."""

from __future__ import annotations

import pytest

from benchmarks.lib import evaluate
from benchmarks.lib.bed import Bed
from benchmarks.lib.methods import Method
from demo.run import MERGE, RATES, SCHEDULES, TRAIN
from demo.world.tasks import STYLE, SUBJECT
from demo.world_model import checkpoint
from soda_core.merge import merge

SODA = Method("SODA-SVD", "large", {"decomposition": "svd"})
COUNT, STEPS = 6, 80

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def bed(host, tmp_path_factory):
    return Bed(checkpoint(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def trained(bed):
    from benchmarks.lib.training import train_method  # imports the host

    return {
        task.kind: train_method(
            bed.patcher,
            bed.training_data(task),
            SODA,
            RATES[task.kind],
            schedule=SCHEDULES[task.kind],
            steps=STEPS,
            seed=0,
            **TRAIN,
        )
        for task in (SUBJECT, STYLE)
    }


def asked(bed, deltas, prompts):
    return evaluate.judged(bed, deltas, prompts, seed=5)[0]


def test_the_base_paints_what_it_is_asked_for(bed) -> None:
    prompts = evaluate.plain_prompts(24)
    verdict, _ = evaluate.judged(bed, None, prompts, seed=5)
    for said, wanted in (
        (verdict.kinds(), [p.kind for p in prompts]),
        (verdict.styles(), [p.style for p in prompts]),
        (verdict.backgrounds(), [p.background for p in prompts]),
    ):
        assert evaluate.accuracy(said, wanted) > 0.6, list(zip(said, wanted, strict=True))


def test_the_subject_is_told_from_the_base(bed, trained) -> None:
    prompts, real = evaluate.subject_prompts(SUBJECT, COUNT), bed.references(SUBJECT)
    before, after = (
        float(asked(bed, deltas, prompts).similarity(real).mean()) for deltas in (None, trained["subject"].deltas)
    )
    assert after > before + 0.2


def test_the_style_is_told_from_the_base(bed, trained) -> None:
    prompts = evaluate.style_prompts(STYLE, COUNT)
    before, after = (asked(bed, deltas, prompts).styles() for deltas in (None, trained["style"].deltas))
    assert after.count(STYLE.name) >= before.count(STYLE.name) + COUNT // 2


@pytest.mark.parametrize("method", ["delta", "geodesic"])
def test_merged_is_more_like_the_subject_in_the_style_than_all_others(bed, trained, method) -> None:
    prompts, real = evaluate.merge_prompts(SUBJECT, STYLE, COUNT), bed.references(SUBJECT, STYLE.name)
    parts = [trained[kind].adapter for kind in ("subject", "style")]
    merged = bed.deltas_of(merge(*parts, **MERGE, method=method))
    likeness = {
        name: float(asked(bed, deltas, prompts).similarity(real).mean())
        for name, deltas in {"base": None, **{k: t.deltas for k, t in trained.items()}, "merged": merged}.items()
    }
    others = max(value for name, value in likeness.items() if name != "merged")
    assert likeness["merged"] > others + 0.05, likeness
