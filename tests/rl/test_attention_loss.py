"""The attention loss's equations by hand, its targets, and the names of its choices."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rl.attention_loss import BoxTargets, box_loss, box_margins, chosen_layers


def marks(length: int, *where: int) -> Tensor:
    return torch.isin(torch.arange(length), torch.tensor(where))[None]


def one_sample() -> BoxTargets:
    """Ten tokens and two of padding: boxes at 2 and 3, query image at 6 and 8."""
    return BoxTargets.padded(marks(12, 6, 8), marks(12, 2, 3), marks(12, *range(10)))


# By hand, b = (0.1, 0.5), |box| = 2. All: 10 − 2 = 8 others. Visible: 7 − 2 = 5 others at token 6, 9 − 2 = 7 at token 8.
MARGINS = {
    ("mean", "all"): (0.1 / 2 - 0.9 / 8, 0.5 / 2 - 0.5 / 8),
    ("sum", "all"): (0.1 - 0.9 / 8, 0.5 - 0.5 / 8),
    ("mean", "visible"): (0.1 / 2 - 0.9 / 5, 0.5 / 2 - 0.5 / 7),
    ("sum", "visible"): (0.1 - 0.9 / 5, 0.5 - 0.5 / 7),
}


@pytest.mark.parametrize(("reduction", "denominator"), MARGINS)
def test_margins_by_hand(reduction: str, denominator: str) -> None:
    margins = box_margins(torch.tensor([0.1, 0.5], dtype=torch.float64), one_sample(), reduction, denominator)
    expected = torch.tensor(MARGINS[reduction, denominator], dtype=torch.float64)
    torch.testing.assert_close(margins, expected, rtol=0, atol=1e-15)


def test_squared_hinge_by_hand() -> None:
    """Δ = (−0.0625, 0.1875): at μ = 0.025 only the first row is open, (0.0875² + 0)/2."""
    loss = box_loss(torch.tensor([0.1, 0.5], dtype=torch.float64), one_sample(), margin=0.025)
    torch.testing.assert_close(loss, torch.tensor([0.0875**2 / 2], dtype=torch.float64), rtol=0, atol=1e-15)


def test_every_sample_is_the_mean_of_its_own_rows() -> None:
    rows = torch.cat([marks(8, 5), marks(8, 4, 5, 6)])
    targets = BoxTargets.padded(rows, marks(8, 1).repeat(2, 1), torch.ones(2, 8))
    mass = torch.tensor([0.2, 0.0, 0.1, 0.3], dtype=torch.float64)
    hinge = (1.0 - (mass - (1 - mass) / 7)) ** 2
    torch.testing.assert_close(box_loss(mass, targets, 1.0), torch.stack([hinge[0], hinge[1:].mean()]))


def test_with_the_papers_figures_the_mean_never_closes_and_the_sum_does() -> None:
    """Four boxes of twenty tokens with all of a row's attention: 1/80 is below μ = 0.025."""
    columns, rows = marks(500, *range(80)), marks(500, 450)
    targets = BoxTargets.padded(rows, columns, torch.ones(1, 500))
    everything = torch.ones(1)
    assert box_loss(everything, targets, 0.025, "mean") > 0
    assert box_loss(everything * 0.05, targets, 0.025, "sum") == 0


def test_a_packed_row_is_several_samples() -> None:
    sample = torch.tensor([[0] * 5 + [1] * 4 + [-1]])
    targets = BoxTargets(marks(10, 3, 4, 7), marks(10, 1, 6), sample)
    first, second = targets.places
    assert (first.first, first.tokens, first.rows.tolist(), first.columns.tolist()) == (0, 5, [3, 4], [1])
    assert (second.first, second.tokens, second.rows.tolist(), second.columns.tolist()) == (5, 4, [7], [6])
    visible = box_margins(torch.zeros(3), targets, denominator="visible")
    torch.testing.assert_close(visible, -torch.tensor([1 / 3, 1 / 4, 1 / 2]))


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (marks(6), marks(6, 1), "sample 0 has no query-image token"),
        (marks(6, 3), marks(6), "sample 0 has no support-box token"),
        (marks(6, 5), marks(6, 1), "marked on padding"),
        (marks(6, 3), marks(6, 0, 1, 2, 3), "box tokens only"),
        (marks(7, 3), marks(6, 0), "one shape"),
    ],
)
def test_targets_that_mean_nothing(rows: Tensor, columns: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoxTargets.padded(rows, columns, marks(6, 0, 1, 2, 3))


def test_a_sample_in_two_pieces() -> None:
    with pytest.raises(ValueError, match="tokens of sample 0 are not consecutive"):
        BoxTargets(marks(4, 3), marks(4, 0), torch.tensor([[0, 0, -1, 0]]))


def test_a_batch_without_samples() -> None:
    with pytest.raises(ValueError, match="every token is padding"):
        BoxTargets.padded(marks(4), marks(4), marks(4))


def test_visible_needs_a_box_before_the_row() -> None:
    targets = BoxTargets.padded(marks(6, 2), marks(6, 4), torch.ones(1, 6))
    assert box_loss(torch.zeros(1), targets, 0.025, denominator="all").shape == (1,)
    with pytest.raises(ValueError, match="denominator=all"):
        box_loss(torch.zeros(1), targets, 0.025, denominator="visible")


@pytest.mark.parametrize("wrong", [{"reduction": "median"}, {"denominator": "none"}])
def test_unknown_choices_are_named(wrong: dict[str, str]) -> None:
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{key}='{value}' is none of"):
        box_loss(torch.zeros(2), one_sample(), 0.025, **wrong)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [("first2", (0, 1)), ("last2", (4, 5)), ("all", range(6)), ("3", (3,)), ("5,0, 2", (0, 2, 5)), ("first6", range(6))],
)
def test_layers(spec: str, layers: Sequence[int]) -> None:
    assert chosen_layers(spec, 6) == tuple(layers)


@pytest.mark.parametrize("spec", ["first7", "last0", "first", "0,6", "1,1", "-1", "", "0;1", "middle2", "1,", "all5"])
def test_layer_specs_that_are_refused_by_name(spec: str) -> None:
    with pytest.raises(ValueError, match=f"layers='{spec}'"):
        chosen_layers(spec, 6)
