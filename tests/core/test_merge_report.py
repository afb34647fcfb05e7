# SPDX-License-Identifier: GPL-3.0-or-later
"""What a merge says of its parents, and the verdict it ends in."""

from __future__ import annotations

import math
import re

import pytest

from soda_core import SodaAdapter, SodaLayer, merge
from soda_core.base_weight import BaseWeight
from soda_core.interference import Interference, interference
from soda_core.report.inspection import overview, rows_of
from soda_core.report.merge import interference_report, notes, overlap, verdict

from .conftest import random_layer

UP, DOWN = "diffusion_model.output_blocks.1.1.attn1.to_q", "diffusion_model.input_blocks.1.1.attn2.to_k"


def found(rows: dict[str, tuple[float, float, float]], a: float = 1.0, b: float = 1.0):
    """Rows of (subject's size, style's size, cosine)."""
    made = {name: Interference(cosine, (s, t), None, None) for name, (s, t, cosine) in rows.items()}
    return overlap(made, dict.fromkeys(rows, a), dict.fromkeys(rows, b))


def test_two_changes_are_measured_as_one_vector_each() -> None:
    two = found({"a": (3.0, 1.0, 0.5), "b": (4.0, 0.0, 0.0)}, 1.0, 2.0)
    assert (two.subject, two.style) == (5.0, 1.0)
    assert two.cosine == pytest.approx(1.5 / 5)
    assert two.merged == pytest.approx(math.sqrt(25 + 4 + 2 * 2 * 1.5))
    assert two.shared == pytest.approx(9 / 25) and two.scales == (5.0, 2.0)
    assert overlap({"a": Interference(None, None, 1.0, 0.5)}, {"a": 1.0}, {"a": 1.0}) is None


@pytest.mark.parametrize(
    ("rows", "strengths", "said"),
    [
        (
            {"a": (1, 1, 0), "b": (1, 1, 0)},
            (1, 1),
            "both change the same layers strongly.*1.41 times.*Try 0.7 .*and 1 ",
        ),
        ({"a": (1, 1, 0), "b": (1, 1, 0)}, (0.7, 1), "go together.*1.22 times.*Keep"),
        ({"a": (1, 0, 0), "b": (0, 1, 0)}, (1, 1), "each changes layers of its own.*Try 0.7"),
        ({"a": (1, 1, 0.9)}, (1, 1), r"push the same way \(in the same layers, cosine \+0.90\).*Try 0.25"),
        ({"a": (1, 1, -0.8)}, (1, 1), "pull against each other.*subject_blocks"),
        ({"a": (5, 1, 0)}, (1, 1), "subject is 5.0 times as strong as the style.*halve subject_strength"),
        ({"a": (1, 5, 0)}, (1, 1), "style is 5.0 times"),
        ({"a": (1, 1, 0)}, (1, 0), "only the subject changes anything"),
        ({"a": (0, 0, 0)}, (1, 1), "only the"),
    ],
)
def test_the_verdict_follows_from_the_measurement(rows, strengths, said) -> None:
    assert re.search(said, verdict(found(rows, *strengths))), verdict(found(rows, *strengths))


def test_what_is_suggested_is_comfortable() -> None:
    for rows in ({"a": (1, 1, 0)}, {"a": (1, 1.5, 0.4)}, {"a": (2, 1.5, 0.2), "b": (1, 1, 0)}):
        before = found(rows)
        after = found(rows, before.subject_strength(), 1.0)
        assert after.growth < before.growth and after.growth <= 1.26, rows


def parents():
    W, subject = random_layer()
    style = random_layer(seed=11)[1].with_base_check(W)
    return W, *(SodaAdapter({UP: each, DOWN: each}, {"title": title}) for each, title in ((subject, "a"), (style, "b")))


def test_the_report_is_a_narrow_table_and_ends_in_the_verdict() -> None:
    W, a, b = parents()
    rows = interference(a, b, lambda name: BaseWeight(W))
    text = interference_report(a, b, rows, merge(a, b, 0.8, 0.6, subject_blocks="up 0.5"))
    lines = text.splitlines()
    assert "- subject: 0.8 x a (up 0.5)" in lines and "- style: 0.6 x b" in lines
    assert any("2 in the result, 2 in both, 0 only in the subject" in line for line in lines)
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table[:6]}) == 1 and max(map(len, table)) <= 60, "it must not wrap"
    for name in ("all", "up", "down", "image", "text", "up.1.1.attn1.to_q"):
        assert any(line.startswith(f"| {name} ") for line in table)
    assert lines[-1].startswith("**Verdict**: ")
    assert (
        interference_report(a, b, interference(a, b), merge(a, b))
        .splitlines()[-1]
        .startswith("**Verdict**: connect the base model")
    )


def test_the_report_measures_what_the_method_made_of_the_two() -> None:
    W, a, b = parents()
    for method, said in (("delta", "Try 0.* for the subject"), ("normalised", "1.00 times.*Keep them")):
        merged = merge(a, b, method=method)
        rows = interference(a, b, lambda name: BaseWeight(W), merged)
        assert all((row.merged is None) == (method == "delta") for row in rows.values())
        assert re.search(said, interference_report(a, b, rows, merged).splitlines()[-1])


def test_the_report_says_what_the_method_s_name_does_not() -> None:
    _, a, b = parents()
    other = SodaAdapter({UP: random_layer(sizes=(2, 15), seed=5)[1], DOWN: b.layers[DOWN]}, {"title": "c"})
    style = SodaAdapter({UP: random_layer(sizes=(), seed=5)[1]}, {"title": "d"})
    merged = merge(a, other, method="geodesic", balance=0.6, magnitude="orthofuse")
    lines = interference_report(a, other, interference(a, other), merged).splitlines()
    assert "- subject: 0.784 x a" in lines and "- style: 1.176 x c" in lines
    assert "- balance 0.6, magnitude orthofuse" in lines
    assert any(line.startswith("- careful: factor sizes or decompositions differ in 1 of 2 layers") for line in lines)
    (note,) = notes(a, merge(a, style, method="parts"))
    assert "(2 of 2 layers have one) is left out" in note
    assert not notes(a, merge(a, b, method="geodesic"))


def test_the_summary_says_what_an_adapter_is_and_where_it_acts() -> None:
    _, layer = random_layer(shape=(24, 30))
    still = SodaLayer("svd", [])
    metadata = {"title": "fox\n", "trigger_phrase": "sks fox", "steps": 1000,
                "base_model": {"name": "base", "family": "SD 1.5"},
                "settings": {"train": "rotation and shift", "decomposition": "svd", "layers": "attention"}}  # fmt: skip
    adapter = SodaAdapter({UP: layer, DOWN: still}, metadata)
    text = overview(adapter, rows_of(adapter))
    assert "**fox\\n**" in text and "- trigger: `sks fox`" in text
    assert "- base: base (SD 1.5), 1,000 steps" in text and "- trained: rotation and shift, svd, attention" in text
    assert f"2 layers, {adapter.num_parameters:,} parameters" in text
    cells = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "°" in cells["up"] and "°" not in cells["down"] and "text" in cells
    merged = merge(adapter, adapter, 0.5, 0.5)
    again = overview(merged, rows_of(merged))
    assert "- merged: fox\\n + fox\\n" in again and "| up | 1 |" in again
