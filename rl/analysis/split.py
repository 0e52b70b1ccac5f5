"""The attention split (FOCUS, Fig. 2): how an answer's attention divides over classes of tokens, layer by layer.

    share_c = Σ_{j of class c} A_j      A: mean over heads and the rows that predict the answer's tokens; Σ_c share_c = 1

A class with more tokens gets more attention from a model that does not look at all, so beside the share stand the number of
tokens that a row sees of the class (on average over the rows) and the share a token.

Shape suffixes: M layers, C classes, L tokens, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rl.analysis.stream import AnswerAttention
from rl.analysis.token_classes import CLASSES


@dataclass(frozen=True)
class Split:
    """`shares_MC`, and `tokens_C`: how many tokens of the class a row sees on average."""

    shares_MC: Tensor
    tokens_C: Tensor

    @property
    def per_token_MC(self) -> Tensor:  # noqa: N802
        """Share a token; NaN for a class without tokens."""
        return self.shares_MC / self.tokens_C


def split_attention(attention: AnswerAttention, class_L: Tensor) -> Split:
    """The split of one answer. `class_L` numbers every token's class."""
    member_LC = one_hot(class_L, len(CLASSES)).double()
    visible_LC = member_LC.cumsum(0)
    return Split(attention.mean_ML.double() @ member_LC, visible_LC[attention.rows_R].mean(0))


def mean_split(splits: Sequence[Split]) -> Split:
    """The mean over answers, every answer alike."""
    return Split(torch.stack([s.shares_MC for s in splits]).mean(0), torch.stack([s.tokens_C for s in splits]).mean(0))
