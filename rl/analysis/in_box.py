"""Attention-in-Box and Peak-in-Box (LOCUS, appendix C.4): does the model look at the target when it begins to answer?

    AIB_l = Σ_i A_l,i · M_i / Σ_i A_l,i      A_l: attention from the position that predicts the first answer token to the
                                             target image's tokens, mean over heads; M_i = 1 on cells that touch the box
    PIB_l = 1 if the largest A_l,i lies on such a cell, else 0

The mean AIB is that of the attention averaged over layers. A model that looks everywhere alike has the share of the cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InBox:
    """Both measures layer by layer [M] and of the map averaged over layers; `uniform` is the share of cells in the box."""

    aib_M: Tensor
    pib_M: Tensor
    aib: float
    pib: float
    uniform: float


def attention_in_box(attention_MN: Tensor, inside: Tensor) -> InBox:
    """`attention_MN` over the N cells of the target image in raster order; `inside` bool [rows, columns] with N cells."""
    inside_N = inside.flatten()
    maps = torch.cat([attention_MN, attention_MN.mean(0, keepdim=True)]).double()
    shares = (maps * inside_N).sum(-1) / maps.sum(-1)
    peaks = inside_N[maps.argmax(-1)].double()
    return InBox(shares[:-1], peaks[:-1], float(shares[-1]), float(peaks[-1]), float(inside_N.double().mean()))
