"""What a drain makes of what it sees."""

from typing import Any
from uuid import UUID

import pytest

from innkeeper.drain_types import DrainPolicy
from innkeeper.errors import InvalidRequest
from innkeeper.states import InstanceState, OperationState
from innkeeper.types import parse_request
from models.children import Child
from models.drains import GuestOnHost
from tasks.drain_policy import (
    Case,
    Stand,
    choose_next,
    describe_progress,
    describe_wait,
    judge,
    summarize,
)

ME = UUID(int=1)


def guest(
    state: str = "active", *, host: str | None = "hv-a", holder: str | None = None
) -> GuestOnHost:
    return GuestOnHost(ME, "vm", InstanceState(state), host, holder, None)


def child(state: str, **more: Any) -> Child:
    return Child(
        operation_id=UUID(int=9),
        kind="live_migrate",
        state=OperationState(state),
        instance_id=ME,
        name="vm",
        dst_host="hv-b",
        progress={},
        result=more.get("result"),
        error=more.get("error"),
    )


FAILED = child("failed", error={"code": "x", "message": "It broke."})
REFUSED = {str(ME): {"instance": "vm", "error": {"code": "no_host_fits", "message": "No."}}}


@pytest.mark.parametrize(
    ("guests", "children", "refused", "stand"),
    [
        ([guest()], [], {}, Stand.TO_MOVE),
        ([guest("paused")], [], {}, Stand.TO_MOVE),
        ([guest("stopped")], [], {}, Stand.STAYS),
        ([guest("error")], [], {}, Stand.STAYS),
        ([guest("unknown", host="hv-b")], [], {}, Stand.STAYS),
        ([guest("building", holder="spawn")], [], {}, Stand.WAITS),
        ([guest(holder="reboot")], [], {}, Stand.WAITS),
        # On its way here by a migration of somebody's, or with a claim that is yet to heal.
        ([guest(host="hv-b", holder="live_migrate")], [], {}, Stand.WAITS),
        ([guest(host="hv-b")], [], {}, Stand.WAITS),
        ([guest(holder="live_migrate")], [child("running")], {}, Stand.MOVING),
        ([], [child("running")], {}, Stand.MOVING),
        ([], [child("succeeded")], {}, Stand.MOVED),
        # It has gone all the same, by somebody else's migration.
        ([], [FAILED], {}, Stand.MOVED),
        ([guest()], [FAILED], {}, Stand.FAILED),
        ([guest()], [child("cancelled")], {}, Stand.CANCELLED),
        ([guest()], [], REFUSED, Stand.REFUSED),
        # It has come back: it is moved once more, but not for ever.
        ([guest()], [child("succeeded")], {}, Stand.TO_MOVE),
        ([guest()], [child("succeeded")] * 3, {}, Stand.FAILED),
    ],
)
def test_how_a_guest_stands(
    guests: list[GuestOnHost],
    children: list[Child],
    refused: dict[str, dict[str, Any]],
    stand: Stand,
) -> None:
    assert [case.stand for case in judge("hv-a", guests, children, refused)] == [stand]


def case(name: str, stand: Stand, why: str | None = None) -> Case:
    return Case(UUID(int=ord(name[-1])), name, stand, why)


def test_no_more_are_asked_than_may_be_under_way() -> None:
    cases = [case("a", Stand.MOVING), *(case(name, Stand.TO_MOVE) for name in "bcd")]
    assert [each.name for each in choose_next(cases, concurrency=3)] == ["b", "c"]
    assert choose_next(cases, concurrency=1) == []
    assert choose_next([case("a", Stand.STAYS)], concurrency=3) == []


def test_progress_counts_those_who_are_to_move() -> None:
    cases = [
        case("a", Stand.MOVED),
        case("b", Stand.FAILED),
        case("c", Stand.MOVING),
        case("d", Stand.WAITS, "held by reboot"),
        case("e", Stand.STAYS),
    ]
    fraction, text = describe_progress(cases)
    assert fraction == 0.5
    assert text == (
        "1 of 4 guests moved, 1 under way, 1 held by other operations, 1 could not be moved, "
        "1 stay: they do not run"
    )
    assert describe_wait(cases) == "1 migration to end; d (held by reboot) to be free"
    assert describe_progress([case("e", Stand.STAYS)])[0] == 1.0


def test_the_result_has_a_line_for_each_guest() -> None:
    figures = {"total_ms": 812.0, "downtime_ms": 31.5}
    cases = judge("hv-a", [], [child("succeeded", result=figures)], {})
    result = summarize("hv-a", [*cases, case("x", Stand.REFUSED), case("y", Stand.STAYS)])
    assert (result["moved"], result["not_moved"], result["stay"]) == (1, 1, 1)
    assert not result["is_empty_of_running"]
    line = result["guests"][0]
    assert line["outcome"] == "moved"
    assert (line["dst"], line["total_ms"], line["downtime_ms"]) == ("hv-b", 812.0, 31.5)


def test_a_drain_has_no_destination_of_its_own() -> None:
    with pytest.raises(InvalidRequest, match="leave dst out"):
        parse_request(DrainPolicy, {"migration": {"dst": "hv-b"}})
