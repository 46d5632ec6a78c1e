"""Server groups on a real database: who may join, and where members may go."""

from typing import Any

import pytest
from sqlalchemy import select, text

from innkeeper.errors import Conflict, NoHostFits
from models.operation import Operation
from models.server_groups import list_groups
from models.session import Database
from tests.models.asking import ask, ask_spawn, count_rows, places, settle
from tests.models.rows import add_host


@pytest.fixture
def fleet(database: Database) -> Database:
    with database.transaction() as session:
        for name in ("hv-a", "hv-b", "hv-c"):
            add_host(session, name)
    return database


def group(policy: str, name: str = "web") -> dict[str, str]:
    return {"name": name, "policy": policy}


def refusal_codes(error: NoHostFits) -> dict[str, str]:
    return {each["host"]: each["code"] for each in error.details["refusals"]}


def test_members_are_kept_apart_and_one_more_than_hosts_is_refused(fleet: Database) -> None:
    for number in range(3):
        ask_spawn(fleet, f"vm-{number}", group=group("anti_affinity"))
    assert sorted(places(fleet).values()) == ["hv-a", "hv-b", "hv-c"]
    before = count_rows(fleet)
    with pytest.raises(NoHostFits) as caught:
        ask_spawn(fleet, "vm-3", group=group("anti_affinity"))
    assert refusal_codes(caught.value) == {"hv-a": "group", "hv-b": "group", "hv-c": "group"}
    assert count_rows(fleet) == before


def test_members_are_kept_together_and_an_insisted_host_elsewhere_is_refused(
    fleet: Database,
) -> None:
    ask_spawn(fleet, "vm-0", group=group("affinity"), host="hv-b")
    ask_spawn(fleet, "vm-1", group=group("affinity"))
    assert set(places(fleet).values()) == {"hv-b"}
    with pytest.raises(NoHostFits, match="hv-c, which was asked for") as caught:
        ask_spawn(fleet, "vm-2", group=group("affinity"), host="hv-c")
    assert refusal_codes(caught.value) == {"hv-c": "group"}


def test_soft_rules_only_prefer(fleet: Database) -> None:
    for number in range(4):
        ask_spawn(fleet, f"near-{number}", memory_mib=1024, group=group("soft_affinity", "near"))
    near = [host for name, host in places(fleet).items() if name.startswith("near")]
    assert len(set(near)) == 1
    # The host is full now: the fifth goes elsewhere rather than nowhere.
    ask_spawn(fleet, "near-4", memory_mib=1024, group=group("soft_affinity", "near"))
    assert places(fleet)["near-4"] != near[0]
    for number in range(3):
        ask_spawn(fleet, f"far-{number}", group=group("soft_anti_affinity", "far"))
    far = [host for name, host in places(fleet).items() if name.startswith("far")]
    # The full host has no room for the third.
    assert set(far) == {"hv-a", "hv-b", "hv-c"} - {near[0]}


def test_another_policy_is_a_conflict_that_names_both(fleet: Database) -> None:
    ask_spawn(fleet, "vm-0", group=group("anti_affinity"))
    before = count_rows(fleet)
    with pytest.raises(Conflict, match="anti_affinity, not affinity") as caught:
        ask_spawn(fleet, "vm-1", group=group("affinity"))
    assert caught.value.details["policy"] == "anti_affinity"
    assert caught.value.details["requested_policy"] == "affinity"
    assert count_rows(fleet) == before


def test_a_group_without_members_takes_its_next_first_members_policy(fleet: Database) -> None:
    ask_spawn(fleet, "vm-0", group=group("anti_affinity"))
    with fleet.transaction() as session:
        session.execute(text("DELETE FROM claims"))
        session.execute(text("UPDATE instances SET state = 'deleted', deleted_at = now()"))
    ask_spawn(fleet, "vm-1", group=group("affinity"))
    ask_spawn(fleet, "vm-2", group=group("affinity"))
    assert places(fleet)["vm-1"] == places(fleet)["vm-2"]
    with fleet.transaction() as session:
        (view,) = list_groups(session)
    assert (view.name, view.policy) == ("web", "affinity")
    assert [(m.name, m.host) for m in view.members] == [
        (name, places(fleet)["vm-1"]) for name in ("vm-1", "vm-2")
    ]


def migrate(fleet: Database, name: str, **policy: Any) -> Operation:
    operation_id = ask(fleet, "live_migrate", instance=name, policy=policy)
    with fleet.transaction() as session:
        return session.scalars(select(Operation).where(Operation.id == operation_id)).one()


def test_a_move_obeys_the_group_also_when_the_destination_is_named(fleet: Database) -> None:
    ask_spawn(fleet, "vm-0", group=group("anti_affinity"), host="hv-a")
    ask_spawn(fleet, "vm-1", group=group("anti_affinity"), host="hv-b")
    settle(fleet)
    before = count_rows(fleet)
    with pytest.raises(NoHostFits) as caught:
        migrate(fleet, "vm-0", dst="hv-b")
    assert refusal_codes(caught.value) == {"hv-b": "group"}
    # Splitting is for affinity; what is to be apart is never put together.
    with pytest.raises(NoHostFits):
        migrate(fleet, "vm-0", dst="hv-b", may_split_group=True)
    assert count_rows(fleet) == before
    moved = migrate(fleet, "vm-0")
    assert moved.dst_host == "hv-c"
    assert {(r["host"], r["code"]) for r in moved.refusals} == {
        ("hv-a", "ignored"),
        ("hv-b", "group"),
    }


def test_a_guest_under_way_counts_on_both_its_hosts(fleet: Database) -> None:
    ask_spawn(fleet, "vm-0", group=group("anti_affinity"), host="hv-a")
    settle(fleet)
    assert migrate(fleet, "vm-0", dst="hv-b").dst_host == "hv-b"
    for host in ("hv-a", "hv-b"):
        with pytest.raises(NoHostFits) as caught:
            ask_spawn(fleet, "vm-1", group=group("anti_affinity"), host=host)
        assert refusal_codes(caught.value) == {host: "group"}
    ask_spawn(fleet, "vm-1", group=group("anti_affinity"))
    assert places(fleet)["vm-1"] == "hv-c"


def test_an_affinity_group_is_moved_one_by_one_if_the_caller_says_so(fleet: Database) -> None:
    for number in range(2):
        ask_spawn(fleet, f"vm-{number}", group=group("affinity"), host="hv-a")
    settle(fleet)
    with pytest.raises(NoHostFits) as caught:
        migrate(fleet, "vm-0")
    assert refusal_codes(caught.value) == {"hv-a": "ignored", "hv-b": "group", "hv-c": "group"}
    dst = migrate(fleet, "vm-0", dst="hv-c", may_split_group=True).dst_host
    assert dst == "hv-c"
    # The second follows the first without being told where it went, or that it may.
    assert migrate(fleet, "vm-1").dst_host == "hv-c"


def test_the_last_member_may_go_anywhere(fleet: Database) -> None:
    ask_spawn(fleet, "vm-0", group=group("affinity"), host="hv-a")
    settle(fleet)
    assert migrate(fleet, "vm-0", dst="hv-b").dst_host == "hv-b"
