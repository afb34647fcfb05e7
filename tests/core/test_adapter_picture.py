# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from soda_core.report import theme
from soda_core.report.adapter_picture import LayerRow, adapter_picture
from soda_core.report.inspection import MOST_ANGLES, layer_angles
from soda_core.report.theme import to_image_tensor


def pixels(figure) -> np.ndarray:
    """(height, width, 3), 0..255"""
    return (to_image_tensor(figure)[0] * 255).round().int().numpy()


def rows(count: int, shift: float = 0.1, angle: float = 3.0) -> list[LayerRow]:
    g = torch.Generator().manual_seed(0)
    shifts, angles = shift * torch.randn(count, 64, generator=g), angle * torch.rand(count, 64, generator=g)
    return [LayerRow(f"net.block.{i}.to_q", shifts[i], angles[i], 99, (64, 64)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 32, 60, 61, 700, 1400])
def test_portraits_of_any_size(count) -> None:
    image = pixels(adapter_picture(rows(count), title="fox", subtitle="base"))
    assert image.shape[1] == 1024 and image.shape[0] <= 2000
    assert image.std() > 5


def test_portraits_of_ablations_and_of_nothing_learnt() -> None:
    no_shift = [LayerRow("a", None, torch.tensor([1.0]), 1, None)]
    no_rotation = [LayerRow("a", torch.tensor([1.0]), None, 1, None)]
    nothing = [LayerRow("a", torch.zeros(8), torch.zeros(8), 16, (8, 8))]
    pictures = [pixels(adapter_picture(r, title="t")) for r in (no_shift, no_rotation, nothing, [])]
    assert all(p.shape[1] == 1024 for p in pictures)
    assert not np.array_equal(pictures[0], pictures[1])


def test_an_absent_column_says_so_and_an_untrained_adapter_is_not_coloured() -> None:
    def colour(count_rows: list[LayerRow], left: int, right: int) -> int:
        rows_of = pixels(adapter_picture(count_rows, title="t"))[92 : 92 + 20 * len(count_rows)]
        return int((rows_of.max(2) - rows_of.min(2))[:, left:right].max())

    strip, bars = (310, 610), (640, 930)
    assert colour(rows(8), *strip) > 60 and colour(rows(8), *bars) > 60
    untrained = rows(8, shift=0.0, angle=0.0)
    assert colour(untrained, *strip) < 20 and colour(untrained, *bars) < 20
    ablation = [LayerRow(r.name, None, r.angles, r.parameters, r.shape) for r in rows(8)]
    assert colour(ablation, *strip) < 20 < colour(ablation, *bars)
    words = pixels(adapter_picture(ablation, title="t"))[92:252, 310:610].max(2)
    assert words.max() > 120, "no shift stands there"
    assert words[:50].max() < 60 and words[110:].max() < 60, "and stands there once"


def test_values_that_are_not_finite_are_drawn_and_named() -> None:
    good, bad = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([1.0, math.nan, math.inf])
    pictures = [pixels(adapter_picture([LayerRow("a", s, good, 1, None)], title="t")) for s in (good, bad)]
    assert not np.array_equal(pictures[0][40:60], pictures[1][40:60]), "the header says so"


def test_long_or_broken_titles_stay_in_their_place() -> None:
    long = "a very long title\nover lines " * 20
    plain, busy = (pixels(adapter_picture(rows(2), title=t, subtitle=t)) for t in ("", long))
    assert np.array_equal(plain[:, 860:], busy[:, 860:]), "the totals are not printed over"


def names(count_rows: list[LayerRow]) -> list[str]:
    """Beside the shifts, from top to bottom."""
    return [label.get_text() for label in adapter_picture(count_rows, title="t").axes[0].get_yticklabels()]


def test_names_keep_their_block_numbers() -> None:
    name = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0"
    figure = theme.new_figure(100, 100)
    shown = theme.fit_path(figure, name, 230, 11)
    assert 200 < theme.text_width(figure, shown, 11) <= 230
    assert shown.endswith(".0.attn1.to_out.0") and ".4.1." in shown
    assert theme.fit_path(figure, "a.b", 230, 11) == "a.b" and theme.fit_path(figure, "", 230, 11) == ""
    assert theme.text_width(figure, theme.fit_path(figure, "block.1." * 1000 + "x" * 5000, 230, 11), 11) <= 230


def test_many_layers_are_labelled_by_block() -> None:
    blocks = [LayerRow(f"diffusion_model.double_blocks.{i}.img_attn.{p}", None, None, 1, None)
              for i in range(33) for p in ("qkv", "proj")]  # fmt: skip
    other = LayerRow("diffusion_model.single_blocks.0.linear1", None, None, 3, None)
    picture = adapter_picture([*blocks, other], title="t")
    assert names(blocks[:6])[:2] == ["double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj"]
    assert names([*blocks, other]) == [*(f"double_blocks.{i}" for i in range(33)), "single_blocks.0"]
    assert picture.axes[0].get_yticks().tolist() == list(range(0, 67, 2))
    counts = [label.get_text() for label in picture.axes[1].get_yticklabels()]
    assert counts == ["2"] * 33 + ["3"]


def test_larger_shifts_are_brighter_and_the_same_adapter_gives_the_same_picture() -> None:
    half = rows(1)
    both = [half[0], LayerRow("b", 0.1 * half[0].shift, half[0].angles, 99, (64, 64))]
    first, second = pixels(adapter_picture(both, title="t")), pixels(adapter_picture(both, title="t"))
    assert np.array_equal(first, second)
    strips = first[92:132, 310:600]
    colour = (strips.max(2) - strips.min(2)).mean(1)
    assert colour[2:14].mean() > 3 * colour[22:34].mean()


def test_the_colour_bar_and_the_angles_tell_their_scale() -> None:
    layer = LayerRow("a", torch.tensor([0.5, -0.25]), torch.tensor([0.0, 31.0]), 1, None)
    figure = adapter_picture([layer], title="t")
    figure.canvas.draw()
    _, bars, scale = figure.axes
    assert [label.get_text() for label in scale.get_xticklabels()] == ["-0.5", "0", "+0.5"]
    assert [label.get_text() for label in bars.get_xticklabels()][:4] == ["0°", "10°", "20°", "30°"]
    assert bars.get_xlim() == pytest.approx((0, 31))
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["RMS angle", "largest angle"]


def test_huge_values_make_a_picture() -> None:
    huge = LayerRow("a", torch.tensor([3e38, -3e38, 0.0]), torch.tensor([3e38]), 1, None)
    assert pixels(adapter_picture([huge], title="t")).std() > 5


def test_angles_of_a_product_are_sums() -> None:
    def turn(degrees: float) -> torch.Tensor:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return torch.tensor([[c, -s], [s, c]])

    angles = layer_angles([turn(10.0), turn(3.0)])
    torch.testing.assert_close(angles.sort().values, torch.tensor([7.0, 7.0, 13.0, 13.0]).double(), atol=1e-4, rtol=0)
    assert layer_angles([]) is None


def test_angles_of_many_factors_take_bounded_memory() -> None:
    """All sums of these would be 60^5, six gigabytes; what the picture shows of them is known without."""
    g = torch.Generator().manual_seed(0)
    A = [0.01 * torch.randn(60, 60, generator=g) for _ in range(5)]
    factors = [torch.linalg.matrix_exp(a - a.mT) for a in A]
    angles, each = layer_angles(factors), [layer_angles([R]) for R in factors]
    assert len(angles) == MOST_ANGLES
    assert float(angles.max()) == pytest.approx(sum(float(a.max()) for a in each), rel=1e-6)
    assert float(angles.square().mean()) == pytest.approx(sum(float(a.square().mean()) for a in each), rel=0.01)
