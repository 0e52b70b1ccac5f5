"""FOCUS's attention loss (eqs. 5–10): the query image's tokens shall look at the text of the supports' boxes.

    b_i  = Σ_{j∈box} A_ij                    A = mean over the chosen layers and all heads; row i a query-image token
    p⁺_i = b_i / |box|                       p⁻_i = (1 − b_i) / (T − |box|)        rows of A sum to 1
    Δ_i  = p⁺_i − p⁻_i                       L = (1/N) Σ_i max(0, μ − Δ_i)²        N rows of a sample

Named choices beside the paper's:

    reduction    mean     p⁺ is the mean share of a box token, as printed. With four boxes of some twenty tokens p⁺ ≤ 1/80,
                          below the paper's μ = 0.025, so the hinge pulls on every row to the end.
                 sum      p⁺_i = b_i, the share of the whole box text; p⁻_i stays the mean share of another token. The hinge
                          closes once the boxes together get μ more than one token gets on average. (Against the SUM
                          elsewhere, 1 − b_i, it would ask for more than half of a row's attention, which leaves none
                          for the image.)
    denominator  all      T counts every unpadded token of the sample, as in eq. 8, those behind the row included.
                 visible  box and other tokens are counted up to the row itself.

`rl.attention_hook` gets b_i out of a model. Shape suffixes: B rows of the batch, L tokens a row, S samples (as many as
rows unless packed), N query-image tokens of all samples, in the order of samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from rl.attention_mass import Span

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class BoxTargets:
    """What the loss looks at in a batch, padded on either side or packed. Tensors stay on the host.

    `rows_BL` bool: query-image tokens. `columns_BL` bool: text tokens of the supports' boxes. `sample_BL`: the number
    0 … S−1 of the sample that a token belongs to, −1 on padding; a sample's tokens are consecutive in one row.
    Raises ValueError for a sample without query-image tokens, without box tokens, or of box tokens only.
    """

    rows_BL: Tensor
    columns_BL: Tensor
    sample_BL: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(tensor.shape) for tensor in (self.rows_BL, self.columns_BL, self.sample_BL)}
        if len(shapes) != 1 or self.sample_BL.dim() != 2:
            raise ValueError(f"rows, columns and samples must share one shape [B, L], got {sorted(shapes)}")
        if ((self.rows_BL | self.columns_BL) & (self.sample_BL < 0)).any():
            raise ValueError("query-image or box tokens are marked on padding, where sample_BL is −1")
        if not len(self.places):
            raise ValueError("the attention loss needs at least one sample; every token is padding")
        for sample, place in enumerate(self.places):
            self._check(sample, place)

    def _check(self, sample: int, place: Place) -> None:
        if not len(place.rows):
            raise ValueError(f"sample {sample} has no query-image token: the attention loss needs a query image")
        if not len(place.columns):
            raise ValueError(f"sample {sample} has no support-box token: the attention loss needs supports with boxes")
        if len(place.columns) == place.tokens:
            raise ValueError(f"sample {sample} consists of box tokens only ({place.tokens}); mark the boxes' text alone")

    @classmethod
    def padded(cls, rows_BL: Tensor, columns_BL: Tensor, tokens_BL: Tensor) -> BoxTargets:
        """One sample a row; `tokens_BL` is False (or 0) on padding, like a tokenizer's attention mask."""
        number_B1 = torch.arange(tokens_BL.shape[0], device=tokens_BL.device)[:, None]
        return cls(rows_BL, columns_BL, torch.where(tokens_BL.bool(), number_B1, -1))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        return tuple(self._place(sample) for sample in range(int(self.sample_BL.max()) + 1))

    def _place(self, sample: int) -> Place:
        own_BL = self.sample_BL == sample
        batch, token = own_BL.nonzero(as_tuple=True)
        if not len(batch) or batch[0] != batch[-1] or token[-1] - token[0] + 1 != len(token):
            raise ValueError(f"the {len(batch)} tokens of sample {sample} are not consecutive tokens of one batch row")
        row = int(batch[0])
        rows = (own_BL & self.rows_BL)[row].nonzero()[:, 0].cpu()
        columns = (own_BL & self.columns_BL)[row].nonzero()[:, 0].cpu()
        return Place(row, int(token[0]), len(token), rows, columns)

    @property
    def rows_per_sample(self) -> list[int]:
        return [len(place.rows) for place in self.places]

    def spans(self, device: torch.device) -> tuple[Span, ...]:
        """What `rl.attention_mass` computes on."""
        return tuple(Span.of(place.batch, place.first, place.rows, place.columns, device) for place in self.places)


@dataclass(frozen=True)
class Place:
    """Where a sample lies: `tokens` tokens from `first` on in row `batch`; its rows and box columns as positions there."""

    batch: int
    first: int
    tokens: int
    rows: Tensor
    columns: Tensor


def _counts_all(place: Place) -> tuple[Tensor, Tensor]:
    box = torch.full_like(place.rows, len(place.columns))
    return box, place.tokens - box


def _counts_visible(place: Place) -> tuple[Tensor, Tensor]:
    box = torch.searchsorted(place.columns, place.rows, right=True)
    others = place.rows + 1 - place.first - box
    if not box.all() or not others.all():
        raise ValueError(
            "a query-image token sees no box token, or nothing else, so denominator=visible divides by zero; "
            "supports come before the query image, or take denominator=all"
        )
    return box, others


# (box tokens, other tokens) that each row of a sample counts
DENOMINATORS: dict[str, Callable[[Place], tuple[Tensor, Tensor]]] = {"all": _counts_all, "visible": _counts_visible}
# What b_i is divided by, from a row's count of box tokens
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda box_N: box_N, "sum": torch.ones_like}


def box_margins(mass_N: Tensor, targets: BoxTargets, reduction: str = "mean", denominator: str = "all") -> Tensor:
    """Δ [N] from b [N]."""
    counts = [_choice(DENOMINATORS, "denominator", denominator)(place) for place in targets.places]
    box_N = torch.cat([box for box, _ in counts]).to(mass_N.device)
    others_N = torch.cat([others for _, others in counts]).to(mass_N.device)
    return mass_N / _choice(REDUCTIONS, "reduction", reduction)(box_N) - (1 - mass_N) / others_N


def sample_means(values_N: Tensor, targets: BoxTargets) -> Tensor:
    """[S] means over the rows of each sample."""
    return torch.stack([values.mean() for values in values_N.split(targets.rows_per_sample)])


def box_loss(
    mass_N: Tensor, targets: BoxTargets, margin: float, reduction: str = "mean", denominator: str = "all"
) -> Tensor:
    """L_bbox [S] of every sample (eq. 10). The mean over the samples of an update is the caller's to take."""
    margins_N = box_margins(mass_N, targets, reduction, denominator)
    return sample_means((margin - margins_N).clamp_min(0).square(), targets)


def chosen_layers(spec: str, num_layers: int) -> tuple[int, ...]:
    """Indices of decoder layers: `first5`, `last5`, `all`, or a list as `0,3,7`.

    >>> chosen_layers("last2", 28), chosen_layers("0, 3,7", 28)
    ((26, 27), (0, 3, 7))
    """
    if spec == "all":
        return tuple(range(num_layers))
    if match := re.fullmatch(r"(first|last)(\d+)", spec):
        count = int(match[2])
        if not 1 <= count <= num_layers:
            raise ValueError(f"layers={spec!r} asks for {count} layers, the model has {num_layers}")
        return tuple(range(count)) if match[1] == "first" else tuple(range(num_layers - count, num_layers))
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", spec):
        raise ValueError(f"layers={spec!r} is none of first5, last5 (any count), all, or a list as 0,3,7")
    layers = tuple(int(part) for part in spec.split(","))
    if len(set(layers)) != len(layers) or max(layers) >= num_layers:
        raise ValueError(f"layers={spec!r} must name layers from 0 to {num_layers - 1}, each at most once")
    return tuple(sorted(layers))


def _choice(choices: dict[str, Choice], key: str, name: str) -> Choice:
    if name not in choices:
        raise ValueError(f"{key}={name!r} is none of {', '.join(choices)}")
    return choices[name]
