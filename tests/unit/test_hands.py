"""What is kept for a message, and given up when none comes."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from innkeeper.errors import Busy
from models.ledger import StepKey
from tasks.hands import FRESH_S, Hands, InHand
from tasks.leases import HeldLease
from virt.guest_lock import guest_lock

OPERATION = uuid4()


def in_hand(lock_dir: Path, guest: UUID, given_up: list[str]) -> InHand:
    key = StepKey(OPERATION, 1, 1, "worker#1")
    lock, stack = ExitStack(), ExitStack()
    lock.enter_context(guest_lock(lock_dir, guest, timeout_s=0))
    stack.callback(given_up.append, "lease")
    claim = SimpleNamespace(step=SimpleNamespace(key=key))
    return InHand(claim, HeldLease(key), stack, lock, has_guest=True)  # type: ignore[arg-type]


def is_locked(lock_dir: Path, guest: UUID) -> bool:
    try:
        with guest_lock(lock_dir, guest, timeout_s=0):
            return False
    except Busy:
        return True


def test_what_no_message_comes_for_is_given_up(tmp_path: Path) -> None:
    hands, guest, given_up = Hands(), uuid4(), list[str]()
    hands.keep(in_hand(tmp_path, guest, given_up))
    assert is_locked(tmp_path, guest)
    hands.let_go_of_silent(OPERATION, 2)
    assert is_locked(tmp_path, guest), "another step's"
    hands.let_go_of_silent(OPERATION, 1)
    assert not is_locked(tmp_path, guest)
    assert given_up == ["lease"]
    assert hands.take(OPERATION, 1) is None


def test_what_a_message_was_sent_for_is_kept_for_it(tmp_path: Path) -> None:
    hands, guest, given_up = Hands(), uuid4(), list[str]()
    hands.keep(in_hand(tmp_path, guest, given_up))
    hands.note_message(OPERATION, 1)
    hands.let_go_of_silent(OPERATION, 1)
    kept = hands.take(OPERATION, 1)
    assert kept is not None
    assert is_locked(tmp_path, guest)
    assert hands.take(OPERATION, 1) is None, "of two messages one goes on"
    kept.let_go()
    assert not is_locked(tmp_path, guest)


def test_a_claim_that_was_kept_for_long_is_looked_at_again(tmp_path: Path) -> None:
    kept = in_hand(tmp_path, uuid4(), [])
    assert kept.needs_no_check
    kept.since -= 2 * FRESH_S
    assert not kept.needs_no_check
    kept.let_go()


def test_a_message_that_was_quicker_than_its_note_changes_nothing() -> None:
    hands = Hands()
    hands.note_message(OPERATION, 1)
    hands.let_go_of_silent(OPERATION, 1)
    assert hands.take(OPERATION, 1) is None


@pytest.mark.parametrize("queue", [None, "host.hv-b"])
def test_a_closed_or_strange_queue_takes_nothing(queue: str | None) -> None:
    from tasks.own_queue import OwnQueue

    own = OwnQueue()
    assert not own.takes("host.hv-a")
    own.open(SimpleNamespace(strategies={}), "host.hv-a")
    assert own.takes("host.hv-a")
    assert not own.takes(queue)
    own.close()
    assert not own.takes("host.hv-a")
