"""PromptLedger: the order of the stream whoever takes or lends, and after a stop the unsettled first, then the very next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data.stream import PromptStream
from rl.prompt_ledger import Loan, PromptLedger
from tests.data.test_read_ahead import Watched
from tests.data.test_stream import ids, samples


def lent(loans: list[Loan]) -> list[str]:
    return ids([loan.sample for loan in loans])


@given(size=st.integers(1, 9), counts=st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=6))
def test_taking_and_lending_go_through_the_same_order(size: int, counts: list[tuple[bool, int]]) -> None:
    ledger, straight = PromptLedger(samples(size), seed=3), PromptStream(samples(size), seed=3)
    seen: list[str] = []
    for lends, count in counts:
        seen += lent(ledger.lend(count)) if lends else ids(ledger.take(count))
    assert seen == ids(straight.take(len(seen)))
    assert (ledger.epoch, ledger.position) == (straight.epoch, straight.position)


def test_what_was_lent_or_read_ahead_when_a_run_stopped_is_not_lost() -> None:
    watched = Watched(samples(7))
    first = PromptLedger(watched, seed=0, shuffle=False)
    loans = first.lend(5)
    watched.wait_for(10)  # all of the next five are read, and none of them was taken
    first.settle(loans[0])
    first.settle(loans[3])
    first.give_back(loans[2])
    state = first.state_dict()
    assert state["position"] == 5 and state["unsettled"] == [[0, 1], [0, 2], [0, 4]]
    second = PromptLedger(samples(7), seed=0, shuffle=False)
    second.load_state_dict(state)
    resumed = second.lend(7)
    assert lent(resumed) == ["1", "2", "4", "5", "6", "0", "1"]
    assert [(loan.epoch, loan.position) for loan in resumed[:4]] == [(0, 1), (0, 2), (0, 4), (0, 5)]
    assert [(loan.epoch, loan.position) for loan in resumed[4:]] == [(0, 6), (1, 0), (1, 1)]
