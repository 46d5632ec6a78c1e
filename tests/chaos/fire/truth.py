"""Whether callers were told what the rows say, and whether guests are what callers were told."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from innkeeper.errors import from_wire
from tests.chaos.checker.ledger_look import OperationRow
from tests.chaos.checker.violation import Violation
from tests.chaos.fire.callers import NO_ANSWER, NOT_SENT, SUCCEEDED, Asked
from tests.chaos.fire.gamekeeper import Harm
from tests.chaos.fire.journal import Journal
from tests.chaos.fire.records import Records

# What may be told without there ever having been an operation.
REFUSALS = frozenset(
    {
        "invalid_request",
        "not_found",
        "already_exists",
        "conflict",
        "state_conflict",
        "busy",
        "no_host_fits",
        "precheck_failed",
    }
)
# What would need a person, or is a defect.
NEVER = frozenset({"internal_error", "attempts_exhausted", "outcome_unknown", "service_error"})
# A request, or its refusal, that stood nowhere but in a message is lost with it.
LOSES_MESSAGES = ("redis_", "control_", "postgres_", "request.", "messages_", "clock_skewed")
# What makes libvirt or a guest fail; the death of one of Innkeeper's own processes must not.
BREAKS_HYPERVISORS = ("libvirtd_", "qemu_", "network_cut", "finish_reply_lost")
BLAMED_ON_HYPERVISORS = ("hypervisor_", "guest_", "start_failed", "define_", "migration_", "boot_")
FELT_BEFORE_S = 30.0
SHOWN_BEFORE_S = 5.0


class Truth:
    """Compares answers with rows.

    Args:
        records: the rows.
        journal: what happened, for the timelines.
    """

    def __init__(self, records: Records, journal: Journal) -> None:
        self._records = records
        self._journal = journal

    def judge(self, asked: Sequence[Asked], harms: Sequence[Harm]) -> list[Violation]:
        """Return what callers were told wrongly.

        Args:
            asked: requests that have ended.
            harms: everything that stood in that time.
        """
        found = [
            Violation(invariant, f"{one}: {what}", self._timeline(one))
            for one in asked
            for invariant, what in self._problems(one, harms)
        ]
        return found + _judge_leaks(asked)

    def _problems(self, asked: Asked, harms: Sequence[Harm]) -> Iterator[tuple[str, str]]:
        answer = asked.answer
        if answer is None:
            yield "wait_ends", "its caller still waits"
            return
        row = self._records.find_operation(asked.task_id)
        if answer.code == NOT_SENT:
            return
        if answer.code == "wait_timeout":
            yield "operation_ends", f"not over in time; row: {row.state if row else 'none'}"
            return
        if answer.code in NEVER:
            yield "no_person_needed", f"{answer.error}"
        if answer.code == NO_ANSWER:
            names = [harm.name for harm in _around(asked, harms)]
            if not any(name.startswith(LOSES_MESSAGES) for name in names):
                yield "answer_arrives", f"nothing lost it; row: {row.state if row else 'none'}"
            return
        if row is None:
            if answer.code not in REFUSALS | NEVER:
                yield "told_the_truth", "there is no such operation"
            return
        yield from _compare(asked, row)
        reasons = [harm.name for harm in _around(asked, harms)]
        if answer.code.startswith(BLAMED_ON_HYPERVISORS):
            reasons = [name for name in reasons if name.startswith(BREAKS_HYPERVISORS)]
        if not (answer.code in (SUCCEEDED, "cancelled") or reasons):
            yield "fails_for_a_reason", f"nothing was broken: {answer.error}"

    def judge_guests(
        self, names: Sequence[str], dead_guests: Mapping[str, float]
    ) -> list[Violation]:
        """Return guests that are not what their last operations and their deaths make them.

        Args:
            names: the guests.
            dead_guests: when the QEMU of each was last killed, by `time.time`.
        """
        found = []
        for name in names:
            expected, why = self._expected(name, dead_guests.get(name))
            guest = self._records.find_guest(name)
            actual = "absent" if guest is None else guest["state"]
            if expected is not None and actual != expected:
                what = f"{name} is {actual}, not {expected}, after {why}"
                found.append(Violation("guest_as_told", what, []))
        return found

    def _expected(self, name: str, died_at: float | None) -> tuple[str | None, str]:
        """Return a guest's expected state and the reason; None where several are right."""
        rows = self._records.rows(
            "SELECT o.kind, o.state, o.state_before, o.error->>'effect' AS effect, "
            "EXTRACT(EPOCH FROM o.created_at)::float AS since, "
            "EXTRACT(EPOCH FROM o.finished_at)::float AS until "
            "FROM operations o JOIN instances i ON i.id = o.instance_id "
            "WHERE i.name = %(name)s ORDER BY o.finished_at DESC NULLS FIRST LIMIT 20",
            {"name": name},
        )
        for row in rows:
            if died_at is not None and row["until"] is not None and died_at > row["until"]:
                # Killed after the guest was gone, it was another's incoming copy at most.
                return (None, "") if row["kind"] == "delete" else ("stopped", "its QEMU was killed")
            is_during = died_at is not None and died_at > row["since"] - 1
            if row["state"] != "succeeded":
                if is_during or row["kind"] == "delete":
                    return None, ""
                if row["kind"] in ("start", "stop", "reboot"):
                    # A cancelled guest may have heard the power button already.
                    is_told = row["state"] == "failed" and row["effect"] == "not_started"
                    why = f"{row['kind']} has failed and was not started"
                    return (row["state_before"], why) if is_told else (None, "")
                continue
            if is_during and row["kind"] not in ("delete", "stop"):
                return None, ""
            after = {"stop": "stopped", "delete": "absent", "live_migrate": None}
            expected = after.get(row["kind"], "active")
            if expected is not None:
                return expected, f"{row['kind']} has succeeded"
        return None, ""

    def _timeline(self, asked: Asked) -> list[str]:
        row = self._records.find_operation(asked.task_id)
        story = self._records.tell(row.id) if row is not None else ["no operation"]
        until = (asked.ended_at or float("inf")) + 1
        return story + self._journal.between(asked.sent_at - SHOWN_BEFORE_S, until)


def _judge_leaks(asked: Sequence[Asked]) -> list[Violation]:
    """Return each kind of exception that typed callers should not have seen, once."""
    leaks = {leak.strip().splitlines()[-1]: leak for one in asked for leak in one.leaked}
    return [
        Violation("errors_are_typed", f"a typed caller got {last}", leak.splitlines())
        for last, leak in leaks.items()
    ]


def _compare(asked: Asked, row: OperationRow) -> Iterator[tuple[str, str]]:
    answer = asked.answer
    assert answer is not None
    told = f"told {answer.code}, row {row.state} {(row.error or {}).get('code', '')}"
    if answer.code == SUCCEEDED:
        if row.state != "succeeded":
            yield "told_the_truth", told
        elif not _same(answer.result, row.result):
            yield "told_the_truth", f"told {answer.result}, row {row.result}"
    elif row.state not in ("failed", "cancelled"):
        yield "told_the_truth", told
    else:
        of_row = from_wire(row.error or {}).to_wire()
        wrong = [
            f"{key}: told {(answer.error or {}).get(key)!r}, row {of_row[key]!r}"
            for key in ("code", "effect", "host", "step", "message", "hint")
            if (answer.error or {}).get(key) != of_row[key]
        ]
        if wrong:
            yield "told_the_truth", "; ".join(wrong)
        if of_row["effect"] == "unknown":
            yield "no_person_needed", f"nobody knows its effect: {of_row['message']}"


def _same(told: Any, row: Any) -> bool:
    return json.dumps(told, sort_keys=True, default=str) == json.dumps(
        row, sort_keys=True, default=str
    )


def _around(asked: Asked, harms: Sequence[Harm]) -> list[Harm]:
    until = asked.ended_at or float("inf")
    return [
        harm
        for harm in harms
        if harm.since <= until and harm.until >= asked.sent_at - FELT_BEFORE_S
    ]
