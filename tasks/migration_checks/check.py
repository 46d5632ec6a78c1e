"""What a check is, and how a list of them is made: one that breaks is a failure like any other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError

from innkeeper.errors import FencingError, InnkeeperError, Interrupted
from tasks.failed_check import Failure, failure
from tasks.migration_checks.move import Move

log = structlog.get_logger(__name__)

Outcome = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One question that is asked before a guest is moved.

    Args:
        name: stands in the failure, and in the table that people see.
        make: yields what speaks against the move; only looks.
        is_of_copy: whether it matters only where disks are copied, which the source decides; a
            failure may then name the ``pool`` that it is about, or the ``pools`` that must all be
            copied for it to matter; else it is the guest's own.
    """

    name: str
    make: Callable[[Move], Iterable[Failure]]
    is_of_copy: bool = False


def run_checks(checks: Sequence[Check], move: Move) -> list[Outcome]:
    """Make all checks and return what came of each, in order.

    Args:
        checks: which.
        move: what is judged.

    Returns:
        For each check ``{check, passed, host}``, with ``code``, ``message`` and ``hint`` where it
        has failed; a check may fail in several ways.

    Raises:
        Interrupted, FencingError: the step is to stop.
        InnkeeperError: a retryable one; nothing is known of the host at the moment.
    """
    outcomes: list[Outcome] = []
    host = move.services.name
    for check in checks:
        common = {"host": host, **({"is_of_copy": True} if check.is_of_copy else {})}
        found = list(_make(check, move))
        outcomes += [{**each, "passed": False, **common} for each in found]
        if not found:
            outcomes.append({"check": check.name, "passed": True, **common})
    return outcomes


def _make(check: Check, move: Move) -> Iterator[Failure]:
    try:
        yield from check.make(move)
    except (Interrupted, FencingError, DBAPIError):
        raise
    except InnkeeperError as error:
        if error.retryable:
            raise
        yield failure(check.name, f"This could not be looked at: {error.message}", error.hint)
    except Exception as error:
        log.exception("a check raised", check=check.name)
        yield failure(
            check.name,
            f"This could not be looked at on {move.services.name}: "
            f"{type(error).__name__}: {error}.",
            "See that worker's log; until this can be looked at, the guest stays where it is.",
        )


def without_copy(
    outcomes: Iterable[Outcome], *, shared: AbstractSet[str], own: str
) -> list[Outcome]:
    """Return the outcomes that matter for what is copied.

    Args:
        outcomes: of all checks.
        shared: the guest's pools that both hosts see.
        own: the pool that an outcome is about which names none.
    """
    return [
        each
        for each in outcomes
        if not (each.get("is_of_copy") and not shared.isdisjoint(_pools_of(each, own)))
    ]


def _pools_of(outcome: Outcome, own: str) -> tuple[str, ...]:
    return tuple(outcome.get("pools") or (outcome.get("pool", own),))


def list_failures(outcomes: Iterable[Outcome]) -> list[Failure]:
    """Return the failed ones in their wire form."""
    return [
        failure(each["check"], each["message"], each["hint"])
        for each in outcomes
        if not each["passed"]
    ]
