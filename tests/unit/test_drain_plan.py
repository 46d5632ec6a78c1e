"""A drain foretold on paper: guests spread, fill hosts up, and obey their groups."""

from dataclasses import replace
from uuid import UUID

import pytest

from innkeeper.states import InstanceState
from models.drains import GuestOnHost
from models.server_groups import GroupStand
from tasks.drain_plan import Traveller, foretell
from tasks.drain_policy import Case, Stand
from tests.unit.test_placement import DEMAND, HOST

HOSTS = [replace(HOST, name=name) for name in ("hv-a", "hv-b", "hv-c")]


def traveller(
    number: int,
    *,
    stand: Stand = Stand.TO_MOVE,
    group: GroupStand | None = None,
    split: bool = False,
) -> Traveller:
    guest = GuestOnHost(UUID(int=number), f"vm-{number}", InstanceState.ACTIVE, "hv-a", None, None)
    demand = replace(DEMAND, group=group, may_split_group=split)
    return Traveller(guest, Case(guest.id, guest.name, stand), demand)


def told(travellers: list[Traveller]) -> list[str | None]:
    return [move.dst or move.action for move in foretell("hv-a", travellers, HOSTS)]


def test_guests_spread_until_the_hosts_are_full() -> None:
    plan = told([traveller(number) for number in range(8)])
    assert plan[:6] == ["hv-b", "hv-c", "hv-b", "hv-c", "hv-b", "hv-c"]
    assert plan[6:] == ["refuse", "refuse"], "3 GiB each, 1 GiB a guest"


def test_who_is_held_or_off_takes_no_room() -> None:
    assert told([traveller(1, stand=Stand.WAITS), traveller(2, stand=Stand.STAYS)]) == [
        "wait",
        "stay",
    ]


@pytest.mark.parametrize(
    ("policy", "split", "expected"),
    [
        # Together on the host that is drained: none may go first, unless they may go one by one.
        ("affinity", False, ["refuse", "refuse"]),
        ("affinity", True, ["hv-b", "hv-b"]),
        ("anti_affinity", False, ["hv-b", "hv-c"]),
        ("soft_affinity", False, ["hv-b", "hv-b"]),
    ],
)
def test_groups(policy: str, split: bool, expected: list[str]) -> None:
    # Each sees the other one.
    group = GroupStand("g", policy, {"hv-a": 1})
    assert told([traveller(n, group=group, split=split) for n in (1, 2)]) == expected


def test_a_third_member_of_an_anti_affinity_group_has_nowhere_to_go() -> None:
    group = GroupStand("g", "anti_affinity", {"hv-a": 2})
    plan = foretell("hv-a", [traveller(n, group=group) for n in (1, 2, 3)], HOSTS)
    assert [move.dst for move in plan] == ["hv-b", "hv-c", None]
    assert {refusal["code"] for refusal in plan[2].refusals} == {"group"}
    assert "anti-affinity group" in str(plan[2].why)
