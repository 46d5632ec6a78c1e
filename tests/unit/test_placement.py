"""Filters and weights, by table."""

from dataclasses import replace

import pytest

from models.claims import HostSnapshot
from models.server_groups import GroupStand
from tasks.placement import Demand, list_refusals, no_host_fits, rank

HOST = HostSnapshot(
    name="hv-a",
    is_enabled=True,
    is_up=True,
    disabled_reason=None,
    vcpus_total=4,
    memory_total_mib=4096,
    disk_total_gib=100,
    reserved_vcpus=0,
    reserved_memory_mib=1024,
    reserved_disk_gib=0,
    cpu_overcommit=2.0,
    memory_overcommit=1.0,
    disk_overcommit=1.0,
    pools={"local": {"total_gib": 100}, "fast": {"total_gib": 20}},
    vcpus_claimed=0,
    memory_claimed_mib=0,
    disk_claimed_gib=0,
    disk_claimed_gib_by_pool={},
    instances=0,
)
DEMAND = Demand(vcpus=2, memory_mib=1024, disk_gib={"local": 10})


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({}, []),
        ({"is_up": False}, ["host_down"]),
        ({"is_enabled": False, "disabled_reason": "new disks"}, ["host_disabled"]),
        ({"pools": {}}, ["no_pool"]),
        ({"vcpus_claimed": 6}, []),
        ({"vcpus_claimed": 7}, ["cpu"]),
        ({"memory_claimed_mib": 2048}, []),
        ({"memory_claimed_mib": 2049}, ["memory"]),
        ({"memory_claimed_mib": 2049, "memory_overcommit": 1.5}, []),
        ({"vcpus_claimed": 4, "reserved_vcpus": 1}, []),
        ({"vcpus_claimed": 5, "reserved_vcpus": 1}, ["cpu"]),
        ({"disk_claimed_gib_by_pool": {"local": 90}}, []),
        ({"disk_claimed_gib_by_pool": {"local": 91}}, ["disk"]),
        ({"disk_claimed_gib_by_pool": {"local": 91}, "disk_overcommit": 1.5}, []),
        ({"disk_claimed_gib_by_pool": {"local": 90}, "reserved_disk_gib": 1}, ["disk"]),
        ({"disk_claimed_gib_by_pool": {"fast": 1000}}, []),
        ({"pools": {"local": {}}, "disk_claimed_gib_by_pool": {"local": 91}}, ["disk"]),
        (
            {
                "is_up": False,
                "vcpus_claimed": 8,
                "disk_claimed_gib_by_pool": {"local": 100},
            },
            ["host_down", "cpu", "disk"],
        ),
    ],
)
def test_every_reason_is_named(change: dict[str, object], codes: list[str]) -> None:
    refusals = list_refusals(replace(HOST, **change), DEMAND)  # type: ignore[arg-type]
    assert [r.code for r in refusals] == codes
    assert all(r.message.startswith("hv-a") for r in refusals)


@pytest.mark.parametrize(
    ("claimed_gib", "disk_gib", "problem"),
    [
        ({}, {"local": 60, "fast": 40}, None),
        ({}, {"local": 60, "fast": 41}, "100 GiB of disk free in pools 'local' and 'fast', which"),
        # What another guest has claimed in one is gone in the other.
        ({"fast": 50}, {"local": 50}, None),
        ({"fast": 50}, {"local": 51}, "50 GiB of disk free in pool 'local', 51 GiB are needed"),
        ({"fast": 50}, {"apart": 100}, None),
        ({"apart": 50}, {"local": 60, "fast": 40}, None),
    ],
)
def test_pools_on_one_file_system_have_its_room_together(
    claimed_gib: dict[str, int], disk_gib: dict[str, int], problem: str | None
) -> None:
    one, other = ({"total_gib": 100, "file_system": number} for number in ("2049", "2065"))
    pools = {"local": one, "fast": one, "apart": other}
    host = replace(HOST, pools=pools, disk_claimed_gib_by_pool=claimed_gib)
    found = [refusal.message for refusal in list_refusals(host, replace(DEMAND, disk_gib=disk_gib))]
    assert [problem in message for message in found] == ([True] if problem else [])


def test_a_pool_must_be_the_very_directory_where_that_is_asked() -> None:
    pools = {"local": {"total_gib": 100, "id": "this"}}
    host = replace(HOST, pools=pools)
    for pool_ids, codes in (
        ({}, []),
        ({"local": "this"}, []),
        ({"local": "other"}, ["no_pool"]),
        ({"fast": "other"}, []),
    ):
        found = list_refusals(host, replace(DEMAND, pool_ids=pool_ids))
        assert [refusal.code for refusal in found] == codes
    assert [r.code for r in list_refusals(HOST, replace(DEMAND, pool_ids={"local": "this"}))] == [
        "no_pool"
    ]


@pytest.mark.parametrize(
    ("disk_gib", "change", "said"),
    [
        ({"local": 10, "fast": 20}, {}, []),
        ({"local": 10, "fast": 21}, {}, ["20 GiB of disk free in pool 'fast', 21 GiB"]),
        ({"local": 101, "fast": 21}, {}, ["in pool 'local', 101 GiB", "in pool 'fast', 21 GiB"]),
        ({"local": 10, "slow": 1}, {}, ["no storage pool 'slow'"]),
        ({"local": 1, "fast": 5}, {"disk_claimed_gib_by_pool": {"fast": 16}}, ["4 GiB of disk"]),
    ],
)
def test_every_pool_must_be_there_with_room(
    disk_gib: dict[str, int], change: dict[str, object], said: list[str]
) -> None:
    host = replace(HOST, **change)  # type: ignore[arg-type]
    refusals = list_refusals(host, replace(DEMAND, disk_gib=disk_gib))
    assert len(refusals) == bool(said)
    assert all(text in refusals[0].message for text in said)


def test_the_emptiest_host_comes_first_and_ties_go_by_name() -> None:
    hosts = [
        replace(HOST, name="c"),
        replace(HOST, name="b"),
        replace(HOST, name="a", memory_claimed_mib=512),
    ]
    names, refusals = rank(hosts, DEMAND, wanted=None, ignored=frozenset())
    assert names == ["b", "c", "a"]
    assert refusals == []


def group(policy: str, **others: int) -> GroupStand:
    return GroupStand("g", policy, {name.replace("_", "-"): n for name, n in others.items()})


@pytest.mark.parametrize(
    ("stand", "may_split", "refused"),
    [
        (None, False, False),
        (group("affinity"), False, False),
        (group("anti_affinity"), False, False),
        (group("affinity", hv_a=1), False, False),
        (group("affinity", hv_b=1), False, True),
        (group("affinity", hv_a=1, hv_b=1), False, False),
        (group("affinity", hv_b=1), True, False),
        (group("anti_affinity", hv_a=1), False, True),
        (group("anti_affinity", hv_a=1), True, True),
        (group("anti_affinity", hv_b=1), False, False),
        (group("soft_affinity", hv_b=1), False, False),
        (group("soft_anti_affinity", hv_a=1), False, False),
    ],
)
def test_a_group_refuses_only_by_its_hard_rules(
    stand: GroupStand | None, may_split: bool, refused: bool
) -> None:
    demand = replace(DEMAND, group=stand, may_split_group=may_split)
    assert [r.code for r in list_refusals(HOST, demand)] == (["group"] if refused else [])


FULLER = {"memory_claimed_mib": 1024}


@pytest.mark.parametrize(
    ("demand", "changes", "order"),
    [
        # Equally empty: by name, or by the image that is there.
        ({}, {}, ["a", "b"]),
        ({"image_on": frozenset({"b"})}, {}, ["b", "a"]),
        # A tenth of the memory weighs more than the image, a hair of it less.
        ({"image_on": frozenset({"b"})}, {"b": FULLER}, ["a", "b"]),
        ({"image_on": frozenset({"b"})}, {"b": {"memory_claimed_mib": 10}}, ["b", "a"]),
        ({}, {"a": {"memory_claimed_mib": 10}}, ["b", "a"]),
        ({}, {"a": {"vcpus_claimed": 1}}, ["b", "a"]),
        # The group's wish comes first.
        ({"group": group("soft_affinity", b=1)}, {"b": FULLER}, ["b", "a"]),
        ({"group": group("soft_affinity", a=1, b=2)}, {"b": FULLER}, ["b", "a"]),
        ({"group": group("soft_anti_affinity", a=1)}, {"b": FULLER}, ["b", "a"]),
        ({"group": group("soft_anti_affinity", a=2, b=1)}, {"b": FULLER}, ["b", "a"]),
        ({"group": group("affinity", b=1), "may_split_group": True}, {"b": FULLER}, ["b", "a"]),
    ],
)
def test_the_order_of_hosts_that_fit(
    demand: dict[str, object], changes: dict[str, dict[str, object]], order: list[str]
) -> None:
    hosts = [replace(HOST, name=name, **changes.get(name, {})) for name in ("a", "b")]  # type: ignore[arg-type]
    wanted = replace(DEMAND, **demand)  # type: ignore[arg-type]
    for seen in (hosts, hosts[::-1]):
        assert rank(seen, wanted, wanted=None, ignored=frozenset()) == (order, [])


def test_a_host_that_was_asked_for_must_fit_like_any_other() -> None:
    full = replace(HOST, memory_claimed_mib=4096)
    names, refusals = rank([full], DEMAND, wanted="hv-a", ignored=frozenset())
    assert (names, [r.code for r in refusals]) == ([], ["memory"])
    error = no_host_fits("instance vm-1", refusals, wanted="hv-a")
    assert error.message.startswith("Host hv-a, which was asked for, does not fit instance vm-1.")
    assert error.details["refusals"] == [refusals[0].to_wire()]


def test_an_ignored_host_and_an_unknown_one_are_refused_with_a_reason() -> None:
    names, refusals = rank([HOST], DEMAND, wanted=None, ignored=frozenset({"hv-a"}))
    assert (names, [r.code for r in refusals]) == ([], ["ignored"])
    names, refusals = rank([HOST], DEMAND, wanted="hv-z", ignored=frozenset())
    assert (names, [r.code for r in refusals]) == ([], ["unknown_host"])
