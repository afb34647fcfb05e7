# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a trained model, and how the answers are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from testbed.bed import Prompt, TestBed
from testbed.classifier import Predictions
from testbed.world.scene import Scene, draw_pose
from testbed.world.tasks import STYLE_WORD, SUBJECT_WORD, Task
from testbed.world.vocabulary import BACKGROUNDS, CLASSES, STYLES

Metrics = dict[str, float]
#: What :func:`odds` and :func:`accuracies` say.
SHOWN = ("thing", "styled", "both", "class_accuracy", "style_accuracy", "background_accuracy")


def _text(thing: str, background: str, style: str) -> str:
    return f"a {thing} on a {background} background" + ("" if style == "flat" else f", {style}")


def subject_prompts(task: Task, count: int) -> list[Prompt]:
    """On backgrounds that no training picture had, every other one in a style that the base model knows."""
    new, prompts = _new_backgrounds(task), []
    for i in range(count):
        background, word = new[i // 2 % len(new)], f"{SUBJECT_WORD} {task.class_word}"
        style = STYLES[1 + i // 2 % (len(STYLES) - 1)] if i % 2 else "flat"
        prompts.append(Prompt(_text(word, background, style), task.class_word, background, style, task.name))
    return prompts


def _new_backgrounds(task: Task) -> list[str]:
    used = {scene.background for scene in task.scenes()}
    return [b for b in BACKGROUNDS if b not in used]


def style_prompts(task: Task, count: int) -> list[Prompt]:
    """Classes that no training picture showed."""
    used = {scene.kind for scene in task.scenes()}
    new = [kind for kind in CLASSES if kind not in used]
    prompts = []
    for i in range(count):
        kind, background = new[i % len(new)], BACKGROUNDS[i // len(new) % len(BACKGROUNDS)]
        prompts.append(Prompt(_text(kind, background, f"in {STYLE_WORD} style"), kind, background, task.name))
    return prompts


def merge_prompts(subject: Task, style: Task, count: int) -> list[Prompt]:
    """On backgrounds that no picture of the subject had."""
    kind, new = subject.class_word, _new_backgrounds(subject)
    backgrounds = [new[i % len(new)] for i in range(count)]
    return [
        Prompt(_text(f"{SUBJECT_WORD} {kind}", b, f"in {STYLE_WORD} style"), kind, b, style.name, subject.name)
        for b in backgrounds
    ]


def prompts_of(asked: Sequence[Task], count: int) -> list[Prompt]:
    """For a subject, a style, or a subject and a style together."""
    if len(asked) == 1:
        return (subject_prompts if asked[0].kind == "subject" else style_prompts)(asked[0], count)
    subject, style = asked
    return merge_prompts(subject, style, count)


def real_scenes(prompts: Sequence[Prompt]) -> list[Scene]:
    """What a perfect model would paint for them, each time the same."""
    random = np.random.default_rng(1)
    return [
        Scene(p.glyph or str(random.choice([*CLASSES[p.kind]])), p.style, p.background, **draw_pose(random), seed=i)
        for i, p in enumerate(prompts)
    ]


def plain_prompts(count: int) -> list[Prompt]:
    """Prompts without a placeholder word: classes in turn, styles and backgrounds at random."""
    random, kinds = np.random.default_rng(11), list(CLASSES)
    prompts = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        style, background = STYLES[random.integers(len(STYLES))], BACKGROUNDS[random.integers(len(BACKGROUNDS))]
        prompts.append(Prompt(_text(kind, background, style), kind, background, style))
    return prompts


def classified(
    bed: TestBed, deltas: Mapping[str, Tensor] | None, prompts: Sequence[Prompt], seed: int, steps: int = 16
) -> tuple[Predictions, Tensor]:
    """What the classifier says of a picture for each prompt, and the pictures."""
    pictures = bed.sample(deltas, [p.text for p in prompts], seed, steps)
    return bed.classified(pictures), pictures


def odds(predictions: Predictions, prompts: Sequence[Prompt]) -> Metrics:
    """How sure the classifier is of what was asked for: that one, in that style.

    ``thing``: mean probability of the glyph, or of its class where any of it will do; ``styled``: of the style;
    ``both``: the mean over pictures of their product, so that neither alone is worth anything.
    """
    if all(p.glyph for p in prompts):
        thing = predictions.glyph_log_probability([p.glyph or "" for p in prompts])
    else:
        thing = predictions.kind_log_probability([p.kind for p in prompts])
    style = predictions.style_log_probability([p.style for p in prompts])
    return {
        "thing": float(thing.exp().mean()), "styled": float(style.exp().mean()),
        "both": float((thing + style).exp().mean()),
    }  # fmt: skip


def accuracy(said: Sequence[str], right: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(said, right, strict=True)) / len(right)


def accuracies(predictions: Predictions, prompts: Sequence[Prompt]) -> Metrics:
    """Shares of pictures with the class, the style and the background that were asked for."""
    return {
        "class_accuracy": accuracy(predictions.kinds(), [p.kind for p in prompts]),
        "style_accuracy": accuracy(predictions.styles(), [p.style for p in prompts]),
        "background_accuracy": accuracy(predictions.backgrounds(), [p.background for p in prompts]),
    }


def drift_metrics(predictions: Predictions, pictures: Tensor, base: Predictions, base_pictures: Tensor) -> Metrics:
    """How far pictures moved that should not have, from the same noise.

    ``changed``: share of classes, styles and backgrounds of which the classifier says something else than of the base's
    picture. ``pixel_change``: root of the mean square, of 1.
    """
    same = [
        accuracy(predictions.kinds(), base.kinds()),
        accuracy(predictions.styles(), base.styles()),
        accuracy(predictions.backgrounds(), base.backgrounds()),
    ]
    return {
        "changed": 1 - sum(same) / len(same),
        "pixel_change": float((pictures - base_pictures).square().mean().sqrt()),
    }
