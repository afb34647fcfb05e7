# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo claims of its grid, and how it is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from demo.results import BASE, SUBJECT, Results, Row, Training
from demo.run import kept_names
from demo.settings import ANOTHER_CLASS, RECIPES, SCENES, STYLES, SUBJECTS
from demo.sheet import GAP, GROUND, HEAD, HEADER, SMALL, STEP, write_sheet
from soda_core.training.settings import TrainSettings
from testbed.world.render import SIDE
from testbed.world.vocabulary import BACKGROUNDS, CLASSES


def training(task, colour=(9, 9, 9)) -> Training:
    picture = Image.new("RGB", (SIDE, SIDE), colour)
    return Training(task, [(picture, "a caption")] * 5, picture, picture, f"{task.name}.safetensors", 1.0, {}, 1.0)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda task: task.name)
def test_a_subject_is_painted_where_its_pictures_do_not_show_it(subject) -> None:
    text = SCENES[subject.name].text
    assert f"sks {subject.class_word} " in text
    assert [b for b in BACKGROUNDS if b in text] and not [s for s in subject.scenes() if s.background in text]


def test_no_picture_of_a_style_shows_the_other_class() -> None:
    (kind,) = [kind for kind in CLASSES if f" {kind} " in ANOTHER_CLASS.text]
    assert kind not in {scene.kind for style in STYLES for scene in style.scenes()}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_is_one_of_the_training_nodes(kind) -> None:
    assert TrainSettings(**RECIPES[kind].widgets(steps=3)).steps == 3
    assert RECIPES[kind].widgets()["steps"] == RECIPES[kind].settings["steps"]


def test_every_adapter_is_kept_under_a_name_of_its_own() -> None:
    subjects, styles = ([training(task) for task in tasks] for tasks in (SUBJECTS, STYLES))
    merged = {(s, t): f"{s.name} {t.name}" for s in SUBJECTS for t in STYLES}
    names = kept_names(subjects, styles, merged)
    assert sorted(names.values()) == sorted([t.file for t in (*subjects, *styles)] + [*merged.values()])
    first = SUBJECTS[0], STYLES[0]
    assert [names[what] for what in ("subject", "style", "merged")] == [
        *(f"{t.name}.safetensors" for t in first),
        merged[first],
    ]


def test_a_picture_stands_in_its_row_and_under_its_title(tmp_path) -> None:
    columns = [BASE, SUBJECT, *(style.name for style in STYLES)]
    scenes = [(SCENES[s.name], s) for s in SUBJECTS] + [(ANOTHER_CLASS, None)]
    asked = [[c for c in columns if s or c != SUBJECT] for _, s in scenes]

    def colour(i: int, column: str, lora: bool) -> tuple[int, int, int]:
        return 60 * i + 50, 50 * columns.index(column) + 50, 200 if lora else 100

    def rows(lora: bool) -> list[Row]:
        return [
            Row(
                scene,
                s,
                {c: Image.new("RGB", (SIDE, SIDE), colour(i, c, lora)) for c in asked[i] if not (lora and c == BASE)},
            )
            for i, (scene, s) in enumerate(scenes)
        ]

    subjects, styles = ([training(task, (1, 2, 3)) for task in tasks] for tasks in (SUBJECTS, STYLES))
    write_sheet(tmp_path / "sheet.png", Results(subjects, styles, rows(False), rows(True)))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    tops = [HEADER + 2 * GAP + i * STEP for i in range(3)]
    tops += [tops[-1] + STEP + GAP // 2 + HEAD + GAP + i * STEP for i in range(3)]
    for number, top in enumerate(tops):
        i, lora = number % 3, number >= 3
        for c in columns:
            left = GAP + (1 + columns.index(c)) * STEP
            shown = c in asked[i] and not (lora and c == BASE)
            assert (sheet[top + SIDE // 2, left + SIDE // 2] == (colour(i, c, lora) if shown else GROUND)).all(), (
                number,
                c,
            )
    for left, top in [(GAP, tops[0]), (GAP, tops[1]), (GAP + 3 * STEP, GAP), (GAP + 4 * STEP, GAP)]:  # learnt from
        assert (sheet[top : top + STEP - GAP, left : left + SIDE] == (1, 2, 3)).all(-1).sum() == 5 * SMALL**2
