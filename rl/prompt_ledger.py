"""PromptLedger: a prompt stream that remembers which prompts are lent out, so that none is lost when a run stops.

    lend ─► being sampled ─► settle (learnt, or given up as in any step) ─► forgotten
                 └────────── give_back ─► lent again, before any new one

What is saved is the stream's place and the places of all prompts that are not settled: a resumed run lends those first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, cast

from data.sample import Sample
from data.stream import PromptStream, StreamState


class LedgerState(StreamState):
    """`unsettled`: (epoch, position) of the prompts lent out or given back, oldest first; absent when there is none."""

    unsettled: NotRequired[list[list[int]]]


@dataclass(frozen=True)
class Loan:
    """A prompt and its place in the stream's order."""

    sample: Sample
    epoch: int
    position: int


class PromptLedger(PromptStream):
    """A `PromptStream` that also lends. `take` settles at once what it hands out."""

    def __init__(self, samples: Sequence[Sample], seed: int, shuffle: bool = True) -> None:
        super().__init__(samples, seed, shuffle)
        self._lent: dict[tuple[int, int], Loan] = {}
        self._returned: deque[Loan] = deque()

    def take(self, n: int) -> list[Sample]:
        loans = self.lend(n)
        for loan in loans:
            self.settle(loan)
        return [loan.sample for loan in loans]

    def lend(self, n: int) -> list[Loan]:
        """The next `n` prompts, those given back before those never lent."""
        loans = [self._returned.popleft() for _ in range(min(n, len(self._returned)))]
        places = self.upcoming(n - len(loans))
        new = zip(super().take(len(places)), places, strict=True) if places else ()
        loans += [Loan(sample, epoch, position) for sample, (epoch, position, _) in new]
        self._lent |= {(loan.epoch, loan.position): loan for loan in loans}
        return loans

    def settle(self, loan: Loan) -> None:
        del self._lent[loan.epoch, loan.position]

    def give_back(self, loan: Loan) -> None:
        self.settle(loan)
        self._returned.append(loan)

    def state_dict(self) -> LedgerState:
        state = cast(LedgerState, super().state_dict())
        unsettled = sorted((loan.epoch, loan.position) for loan in (*self._lent.values(), *self._returned))
        if unsettled:
            state["unsettled"] = [list(place) for place in unsettled]
        return state

    def load_state_dict(self, state: StreamState) -> None:
        """Stand where `state` stood, its unsettled prompts to be lent next. Raises ValueError as `PromptStream` does."""
        returned: deque[Loan] = deque()
        for epoch, position in cast(LedgerState, state).get("unsettled", []):
            super().load_state_dict({**state, "epoch": epoch, "position": position})
            (place,) = self.upcoming(1)
            returned.append(Loan(self.samples[place[2]], epoch, position))
        super().load_state_dict(state)
        self._lent, self._returned = {}, returned
