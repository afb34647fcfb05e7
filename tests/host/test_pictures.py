# SPDX-License-Identifier: GPL-3.0-or-later
"""What users see: a short training on the demo's base model, looked at by the demo's classifier.

The same training ends elsewhere on another processor, or at another memory alignment: rounding grows over the steps. A
margin is half, or less, of the smallest that was seen.
"""

from __future__ import annotations

import pytest

from demo.settings import MERGE
from soda_core.merge import merge
from testbed import evaluate
from testbed.bed import TestBed
from testbed.demo_base import checkpoint
from testbed.methods import Method
from testbed.recipes import RECIPES
from testbed.world.tasks import STYLE, SUBJECT

SODA = Method("SODA-SVD", "large", {"decomposition": "svd"})
COUNT, STEPS = 6, 80

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def bed(host, tmp_path_factory):
    return TestBed(checkpoint(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def trained(bed):
    from testbed.training import train_method  # imports the host

    def train(task):
        recipe = RECIPES[task.kind]
        settings = recipe.settings | {"steps": STEPS, "seed": 0}
        data = bed.training_data(task)
        return train_method(bed.patcher, data, SODA, recipe.rotation_lr, recipe.shift_lr, **settings)

    return {task.kind: train(task) for task in (SUBJECT, STYLE)}


def asked(bed, deltas, prompts):
    return evaluate.classified(bed, deltas, prompts, seed=5)[0]


def says_style(predictions) -> float:
    """How sure the classifier is of the style, in nats."""
    return float(predictions.style_log_probability([STYLE.name] * COUNT).mean())


def says_subject(predictions) -> float:
    return float(predictions.glyph_log_probability([SUBJECT.name] * COUNT).mean())


def test_the_base_paints_what_it_is_asked_for(bed) -> None:
    prompts = evaluate.plain_prompts(24)
    predictions, _ = evaluate.classified(bed, None, prompts, seed=5)
    for said, wanted in (
        (predictions.kinds(), [p.kind for p in prompts]),
        (predictions.styles(), [p.style for p in prompts]),
        (predictions.backgrounds(), [p.background for p in prompts]),
    ):
        assert evaluate.accuracy(said, wanted) > 0.8, list(zip(said, wanted, strict=True))


def test_the_subject_is_told_from_the_base(bed, trained) -> None:
    prompts = evaluate.subject_prompts(SUBJECT, COUNT)
    before, after = (says_subject(asked(bed, deltas, prompts)) for deltas in (None, trained["subject"].deltas))
    assert after > before + 1


def test_the_style_is_told_from_the_base(bed, trained) -> None:
    prompts = evaluate.style_prompts(STYLE, COUNT)
    before, after = (says_style(asked(bed, deltas, prompts)) for deltas in (None, trained["style"].deltas))
    assert after > before + 4


def test_merged_pictures_have_the_style_and_more_of_the_subject_than_the_style_alone(bed, trained) -> None:
    prompts = evaluate.merge_prompts(SUBJECT, STYLE, COUNT)
    merged = bed.deltas_of(merge(*(trained[kind].adapter for kind in ("subject", "style")), **MERGE))
    base, style, both = (asked(bed, deltas, prompts) for deltas in (None, trained["style"].deltas, merged))
    assert says_style(both) > says_style(base) + 2
    assert says_subject(both) > says_subject(style) + 1
