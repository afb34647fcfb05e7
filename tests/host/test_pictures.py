# SPDX-License-Identifier: GPL-3.0-or-later
"""What users see: a short training on the demo's base model, looked at by the demo's judge."""

from __future__ import annotations

import pytest

from benchmarks.lib import evaluate
from benchmarks.lib.bed import Bed
from benchmarks.lib.methods import Method
from demo.run import RATES, SCHEDULES, TRAIN
from demo.world.tasks import SUBJECT
from demo.world_model import checkpoint

SODA = Method("SODA-SVD", "large", {"decomposition": "svd"})
COUNT, STEPS = 6, 80

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def bed(host, tmp_path_factory):
    return Bed(checkpoint(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def trained(bed):
    from benchmarks.lib.training import train_method  # imports the host

    settings = {**TRAIN, "schedule": SCHEDULES["subject"], "steps": STEPS, "seed": 0}
    return train_method(bed.patcher, bed.training_data(SUBJECT), SODA, RATES["subject"], **settings)


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
    before, after = (float(asked(bed, deltas, prompts).similarity(real).mean()) for deltas in (None, trained.deltas))
    assert after > before + 0.2
