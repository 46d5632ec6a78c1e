"""A handle on one operation: wait for it, watch it, cancel it, from any process that has its id.

The truth about an operation is a row that only the control worker reads, so that is who is asked.
A result found in the result backend is a shortcut. Neither an unreachable Redis nor an emptied one
ends a wait: the client asks again, and a request that was lost on its way is sent again under the
same id, which makes it the same operation.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from innkeeper import contract
from innkeeper.errors import InnkeeperError, NotFound, WaitTimeout, from_wire
from innkeeper.requests import Message
from innkeeper.states import OperationState
from innkeeper.transport import Outcome, Transport, pauses
from innkeeper.types import OperationView

# A wait without a limit gives up when nothing has answered for this long.
OUTAGE_LIMIT_S = 120.0

# A request may stand in the queue for a while before control has made a row of it.
_ARRIVAL_S = 1.5
_LONGEST_ARRIVAL_S = 60.0

_FIRST_ASK_S = 1.0
_ASK_EVERY_S = 2.0
_VOLATILE = {"steps": {"__all__": {"elapsed_ms"}}}


class Operation:
    """One operation, under way or ended.

    Args:
        transport: how Innkeeper is reached.
        operation_id: the operation's id, which is its Celery task's id too.
        message: the request, where this process sent it; without it nothing is ever sent again.
        requested_by: in whose name it would be cancelled.
    """

    def __init__(
        self,
        transport: Transport,
        operation_id: UUID,
        *,
        message: Message | None = None,
        requested_by: str | None = None,
    ) -> None:
        self.id = operation_id
        self._transport = transport
        self._requested_by = requested_by
        self._message = message
        self._outcome: Outcome | None = None
        self._fraction = 0.0
        self._has_row = False
        self._sent_at = time.monotonic()
        self._arrival_s = _ARRIVAL_S

    def __repr__(self) -> str:
        return f"Operation({str(self.id)!r})"

    def view(self) -> OperationView:
        """Ask what the operation is doing, with the timeline of its steps.

        Raises:
            NotFound: when control has no such operation, or not yet.
            ServiceError: when nobody answers in time.
        """
        return self._ask_view(None)

    def result(self) -> dict[str, Any]:
        """Return the result of an operation that has ended, without waiting for one that has not.

        Raises:
            WaitTimeout: when it has not ended.
            InnkeeperError: the operation's own error, typed.
        """
        outcome = self._find_stored() or self._outcome_of(self.view())
        if outcome is None:
            raise self._wait_timeout("has not ended")
        return _result_of(outcome)

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait until the operation has ended.

        Args:
            timeout_s: how long to wait at most; None waits until the operation ends, which it does
                by its own deadline, or until nothing has answered for two minutes.

        Returns:
            The operation's result.

        Raises:
            WaitTimeout: when the time is over; the operation goes on.
            ServiceError: when nothing answers any more.
            InnkeeperError: the operation's own error, typed.
        """
        with self._transport.listening(self.id) as notices:
            return self._wait(_Patience(timeout_s, notices.wait), timeout_s)

    def _wait(self, patience: "_Patience", timeout_s: float | None) -> dict[str, Any]:
        ask_at = time.monotonic() + _FIRST_ASK_S
        for pause_s in pauses(0.005, 0.2, growth=1.005):
            try:
                outcome = self._find_stored()
                if outcome is None and time.monotonic() >= ask_at:
                    view = self._look(patience)
                    outcome = self._outcome if view is None else self._outcome_of(view)
                    ask_at = time.monotonic() + (_ASK_EVERY_S if self._has_row else _FIRST_ASK_S)
                patience.answered()
            except _GivenUp as end:
                raise end.error from None
            except InnkeeperError as exc:
                outcome = None
                patience.failed(exc)
            if outcome is not None:
                return _result_of(outcome)
            if not patience.pause(pause_s):
                raise self._wait_timeout(f"has not ended after {timeout_s:g} s", patience.failure)
        raise AssertionError("unreachable")

    def watch(self, timeout_s: float | None = None) -> Iterator[OperationView]:
        """Follow the operation.

        Args:
            timeout_s: as for ``wait``.

        Yields:
            A view whenever something has changed, the first at once and the last a final one.
            Progress never goes backwards. Whether the operation succeeded stands in the last view;
            a failed one raises nothing here, ``result`` does.

        Raises:
            WaitTimeout: when the time is over; the operation goes on.
            ServiceError: when nothing answers any more.
            InnkeeperError: when the request was refused before it became an operation.
        """
        patience = _Patience(timeout_s)
        seen: dict[str, Any] | None = None
        delays = pauses(0.1, 0.5)
        while True:
            view = None
            try:
                view = self._look(patience)
                patience.answered()
            except _GivenUp as end:
                raise end.error from None
            except InnkeeperError as exc:
                patience.failed(exc)
            if view is None and self._outcome is not None:
                # There is no row to show: refused at the door, or so old that its row is gone.
                _result_of(self._outcome)
                return
            if view is not None:
                facts = view.model_dump(exclude=_VOLATILE)
                if facts != seen:
                    seen, delays = facts, pauses(0.1, 0.5)
                    yield view
                if view.state.is_final:
                    return
            if not patience.pause(next(delays)):
                raise self._wait_timeout(f"has not ended after {timeout_s:g} s", patience.failure)

    def cancel(self) -> OperationView:
        """Ask for the operation to be stopped and undone, as far as it can be.

        Returns:
            The operation as it is now; it ends a little later, and may still succeed when it had
            passed the point of no return.

        Raises:
            NotFound: when control has no such operation.
            ServiceError: when nobody answers in time.
        """
        kwargs: dict[str, Any] = {"operation_id": str(self.id)}
        if self._requested_by is not None:
            kwargs["requested_by"] = self._requested_by
        deadline = time.monotonic() + self._transport.timeout_s
        for pause_s in pauses(0.05, 0.5):
            try:
                return self._read(self._transport.ask(contract.OPERATION_CANCEL, kwargs))
            except NotFound:
                # Cancelled right after it was sent: the request itself may still be in the queue.
                if self._message is None or self._has_row or time.monotonic() >= deadline:
                    raise
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _look(self, patience: "_Patience") -> OperationView | None:
        """Return the view; without one, see to it that there will be, or note the outcome."""
        try:
            return self._ask_view(patience.remaining_s())
        except NotFound as missing:
            # Looked up after the question: a refusal may have been stored in between.
            if self._find_stored() is not None:
                return None
            waited_s = time.monotonic() - self._sent_at
            if waited_s < self._arrival_s:
                return None
            if self._message is None or self._has_row:
                raise _GivenUp(missing) from None
            self._send_again(self._message)
            return None

    def _send_again(self, message: Message) -> None:
        self._transport.publish(
            message.task,
            message.kwargs,
            task_id=message.operation_id,
            shown_as=message.shown_as,
        )
        self._sent_at = time.monotonic()
        self._arrival_s = min(self._arrival_s * 2, _LONGEST_ARRIVAL_S)

    def _ask_view(self, timeout_s: float | None) -> OperationView:
        kwargs = {"operation_id": str(self.id)}
        return self._read(self._transport.ask(contract.OPERATION_SHOW, kwargs, timeout_s))

    def _read(self, answer: Any) -> OperationView:
        view = OperationView.model_validate(answer)
        self._has_row = True
        self._fraction = max(self._fraction, min(view.progress.fraction, 1.0))
        if view.state is OperationState.SUCCEEDED:
            self._fraction = 1.0
        progress = view.progress.model_copy(update={"fraction": self._fraction})
        view = view.model_copy(update={"progress": progress})
        self._outcome_of(view)
        return view

    def _outcome_of(self, view: OperationView) -> Outcome | None:
        if view.state.is_final:
            if view.state is OperationState.SUCCEEDED:
                self._outcome = Outcome(result=view.result)
            else:
                self._outcome = Outcome(error=from_wire(view.error or {}))
        return self._outcome

    def _find_stored(self) -> Outcome | None:
        if self._outcome is None:
            stored = self._transport.find_outcome(self.id)
            if stored is not None and not self._is_of_an_earlier_call(stored):
                self._outcome = stored
        return self._outcome

    def _is_of_an_earlier_call(self, stored: Outcome) -> bool:
        """Tell a refusal that an earlier call with the same key was given; this one has its own."""
        told = None if stored.error is None else stored.error.details.get("call")
        asked = None if self._message is None else self._message.kwargs.get("call")
        return told is not None and asked is not None and told != asked

    def _wait_timeout(self, what: str, failure: InnkeeperError | None = None) -> WaitTimeout:
        message = f"Operation {self.id} {what}."
        if failure is not None:
            message += f" Last heard: {failure.message}"
        return WaitTimeout(message, {"operation_id": str(self.id)})


class _GivenUp(Exception):
    """Ends a wait with an error that asking again would not mend."""

    def __init__(self, error: InnkeeperError) -> None:
        super().__init__(error)
        self.error = error


def _sleep(pause_s: float, at_most_s: float) -> None:
    time.sleep(min(pause_s, at_most_s))


class _Patience:
    """How long a wait goes on: to its own limit or, without one, to that of an outage."""

    def __init__(
        self, timeout_s: float | None, sleep: Callable[[float, float], None] = _sleep
    ) -> None:
        self.failure: InnkeeperError | None = None
        self._sleep = sleep
        self._heard_at = time.monotonic()
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def answered(self) -> None:
        self.failure = None
        self._heard_at = time.monotonic()

    def failed(self, error: InnkeeperError) -> None:
        self.failure = error
        if self._deadline is None and time.monotonic() - self._heard_at >= OUTAGE_LIMIT_S:
            raise error

    def remaining_s(self) -> float | None:
        # Never so little that an answer on its way is missed.
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.2)

    def pause(self, pause_s: float) -> bool:
        """Sleep and return True, or return False when the time is over."""
        left_s = math.inf if self._deadline is None else self._deadline - time.monotonic()
        if left_s <= 0:
            return False
        self._sleep(pause_s, left_s)
        return True


def _result_of(outcome: Outcome) -> dict[str, Any]:
    result = outcome.unwrap()
    return result if isinstance(result, dict) else {}
