# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings: what they may hold, what follows from them, and what a file keeps of them."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest

from soda_core.errors import SettingsError
from soda_core.training.setting import settings_of
from soda_core.training.settings import TrainSettings

SETTINGS = TrainSettings(steps=200)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": 0}, "steps.*1 or more.*0"),
        ({"steps": -5}, "steps"),
        ({"rotation_lr": -1.0}, "rotation_lr"),
        ({"shift_lr": math.nan}, "shift_lr"),
        ({"gradient_clip": math.inf}, "gradient_clip.*0 or more.*inf"),
        ({"dco_beta": 0.0}, "dco_beta.*0.001 or more"),
        ({"batch_size": 0}, "batch_size"),
        ({"loss": "l1"}, "loss.*mse"),
        ({"train": "nothing"}, "train.*shift only"),
        ({"factor_preset": "x"}, "factor_preset.*svdiff-size"),
        ({"layers": "pattern"}, "layer_pattern"),
        ({"warmup_steps": 1000}, "warmup_steps"),
        ({"factor_sizes": {320: (4, 81)}}, r"\(4, 81\).*320"),
        ({"factor_sizes": {320: (-4, -80)}}, r"\(-4, -80\).*320"),
    ],
)
def test_bad_settings_are_refused_with_the_good_ones(change, match) -> None:
    with pytest.raises(SettingsError, match=match):
        replace(SETTINGS, **change)


def test_every_field_but_the_sizes_is_explained_and_takes_what_it_offers() -> None:
    offered, hints = settings_of(TrainSettings), get_type_hints(TrainSettings)
    assert {f.name for f in fields(TrainSettings)} - set(offered) == {"factor_sizes"}
    for name, setting in offered.items():
        numbers = [n for n in (setting.minimum, setting.maximum) if n is not None]
        assert len(setting.help) > 20
        assert len(numbers) == (2 if hints[name] in (int, float) else 0), f"{name}: a number has two bounds"
        assert all(type(n) is hints[name] for n in numbers), f"{name}: bounds are of the field's type"
        if literals := get_args(hints[name]):
            assert setting.choices == literals
        for value in (*numbers, *setting.choices):
            replace(SETTINGS, **{"steps": 1_000_000, "layer_pattern": "*", name: value})


def test_schedule() -> None:
    s = replace(SETTINGS, steps=100, warmup_steps=10, schedule="cosine")
    factors = [s.lr_factor(i) for i in range(100)]
    assert factors[0] < factors[5] < factors[10] == 1.0
    assert factors[10] > factors[50] > factors[99] > 0
    assert factors[99] < 0.01
    assert replace(s, schedule="constant").lr_factor(99) == 1.0


def test_knots_are_for_singular_values_and_for_more_of_them_than_knots() -> None:
    for values in ({"shift_knots": 1}, {"shift_knots": -2}):
        with pytest.raises(SettingsError, match="shift_knots"):
            TrainSettings(**values)
    assert TrainSettings().shift_size(320) == 16 and TrainSettings().shift_size(4) == 4
    assert TrainSettings(shift_knots=0).shift_size(320) == TrainSettings(decomposition="qr").shift_size(320) == 320


def test_sizes_that_are_given_come_before_the_preset() -> None:
    settings = TrainSettings(factor_sizes={320: (5, 64), 1018: (2, 509)}, factor_preset="large")
    assert settings.rotation_sizes((640, 320)) == (5, 64)
    assert settings.rotation_sizes((8, 1018)) == (2, 509), "a large factor that was asked for"
    assert settings.rotation_sizes((640, 1280)) == (16, 80)
    assert settings.rotation_sizes((640, 32, 2, 5)) == (5, 64), "a convolution has in * kernel inputs"
    assert replace(settings, train="shift only").rotation_sizes((640, 320)) == ()


def test_files_stay_as_they_were_without_sizes_of_ones_own() -> None:
    assert "factor_sizes" not in TrainSettings().as_metadata()
    given = TrainSettings(factor_sizes={320: (5, 64)}).as_metadata()
    assert json.loads(json.dumps(given, sort_keys=True))["factor_sizes"] == {"320": [5, 64]}
    assert TrainSettings(**TrainSettings(seed=3).as_metadata()) == TrainSettings(seed=3)
