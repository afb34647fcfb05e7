# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo claims of its grid, and how it is drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from demo.results import BASE, SUBJECT, Results, Row, Training
from demo.run import kept_names
from demo.settings import ANOTHER_CLASS, SCENES, STYLE_TASKS, SUBJECT_TASKS
from demo.sheet import GAP, GROUND, HEAD, HEADER, SMALL, STEP, write_sheet
from soda_core.training.settings import TrainSettings
from testbed.recipes import RECIPES
from testbed.world.render import SIDE
from testbed.world.vocabulary import BACKGROUNDS, CLASSES


def training(task, colour=(9, 9, 9)) -> Training:
    picture = Image.new("RGB", (SIDE, SIDE), colour)
    return Training(task, [(picture, "a caption")] * 5, picture, picture, f"{task.name}.safetensors", 1.0, {}, 1.0)


@pytest.mark.parametrize("subject", SUBJECT_TASKS, ids=lambda task: task.name)
def test_a_subject_is_painted_where_its_pictures_do_not_show_it(subject) -> None:
    text = SCENES[subject.name].text
    assert f"sks {subject.class_word} " in text
    assert [b for b in BACKGROUNDS if b in text] and not [s for s in subject.scenes() if s.background in text]


def test_no_picture_of_a_style_shows_the_other_class() -> None:
    (kind,) = [kind for kind in CLASSES if f" {kind} " in ANOTHER_CLASS.text]
    assert kind not in {scene.kind for style in STYLE_TASKS for scene in style.scenes()}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_is_one_of_the_training_nodes(kind) -> None:
    assert TrainSettings(**RECIPES[kind].widgets(steps=3)).steps == 3
    assert RECIPES[kind].widgets()["steps"] == RECIPES[kind].settings["steps"]


def test_every_adapter_is_kept_under_a_name_of_its_own() -> None:
    learnt = [(task,) for task in (*SUBJECT_TASKS, *STYLE_TASKS)] + [(s, t) for s in SUBJECT_TASKS for t in STYLE_TASKS]
    files = {tasks: f"{number}.safetensors" for number, tasks in enumerate(learnt)}
    names = kept_names(files)
    assert sorted(names.values()) == sorted(files.values())
    subject, style = SUBJECT_TASKS[0], STYLE_TASKS[0]
    assert [names["subject"], names["style"], names["merged"]] == [
        files[t] for t in ((subject,), (style,), (subject, style))
    ]


def test_a_picture_stands_in_its_row_and_under_its_title(tmp_path) -> None:
    columns = [BASE, SUBJECT, *(style.name for style in STYLE_TASKS)]
    scenes = [(SCENES[s.name], s) for s in SUBJECT_TASKS] + [(ANOTHER_CLASS, None)]

    def colour(row: int, column: str, blue: int) -> tuple[int, int, int]:
        """Of the picture there; of an empty place."""
        if column == SUBJECT and scenes[row][1] is None:
            return GROUND
        return 60 * row + 50, 50 * columns.index(column) + 50, blue

    def rows(blue: int) -> list[Row]:
        cells = [
            {c: Image.new("RGB", (SIDE, SIDE), colour(i, c, blue)) for c in columns if s or c != SUBJECT}
            for i, (_, s) in enumerate(scenes)
        ]
        return [Row(scene, s, found) for (scene, s), found in zip(scenes, cells, strict=True)]

    subjects, styles = ([training(task, (1, 2, 3)) for task in tasks] for tasks in (SUBJECT_TASKS, STYLE_TASKS))
    write_sheet(tmp_path / "sheet.png", Results(subjects, styles, rows(100), rows(200)))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    first = HEADER + 2 * GAP
    for blue, start in ((100, first), (200, first + 3 * STEP + GAP // 2 + HEAD + GAP)):
        for i, c in itertools.product(range(3), columns):
            middle = sheet[start + i * STEP + SIDE // 2, GAP + (1 + columns.index(c)) * STEP + SIDE // 2]
            assert (middle == colour(i, c, blue)).all(), (blue, i, c)
    for left, top in ((GAP, first), (GAP, first + STEP), (GAP + 3 * STEP, GAP), (GAP + 4 * STEP, GAP)):  # learnt from
        assert (sheet[top : top + STEP - GAP, left : left + SIDE] == (1, 2, 3)).all(-1).sum() == 5 * SMALL**2
