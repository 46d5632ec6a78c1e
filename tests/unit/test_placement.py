"""Filters and weights, by table."""

from dataclasses import replace

import pytest

from models.claims import HostSnapshot
from tasks.placement import Demand, list_refusals, rank

HOST = HostSnapshot(
    name="hv-a",
    is_enabled=True,
    is_up=True,
    disabled_reason=None,
    vcpus_total=4,
    memory_total_mib=4096,
    disk_total_gib=100,
    reserved_memory_mib=1024,
    cpu_overcommit=2.0,
    memory_overcommit=1.0,
    disk_overcommit=1.0,
    pools={"local": {}},
    vcpus_claimed=0,
    memory_claimed_mib=0,
    disk_claimed_gib=0,
    instances=0,
)
DEMAND = Demand(vcpus=2, memory_mib=1024, disk_gib=10, pool="local")


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
        ({"disk_claimed_gib": 91}, ["disk"]),
        (
            {"is_up": False, "vcpus_claimed": 8, "disk_claimed_gib": 100},
            ["host_down", "cpu", "disk"],
        ),
    ],
)
def test_every_reason_is_named(change: dict[str, object], codes: list[str]) -> None:
    refusals = list_refusals(replace(HOST, **change), DEMAND)  # type: ignore[arg-type]
    assert [r.code for r in refusals] == codes
    assert all(r.message.startswith("hv-a") for r in refusals)


def test_the_emptiest_host_comes_first_and_ties_go_by_name() -> None:
    hosts = [
        replace(HOST, name="c"),
        replace(HOST, name="b"),
        replace(HOST, name="a", memory_claimed_mib=512),
    ]
    names, refusals = rank(hosts, DEMAND, wanted=None, ignored=frozenset())
    assert names == ["b", "c", "a"]
    assert refusals == []


def test_an_ignored_host_and_an_unknown_one_are_refused_with_a_reason() -> None:
    names, refusals = rank([HOST], DEMAND, wanted=None, ignored=frozenset({"hv-a"}))
    assert (names, [r.code for r in refusals]) == ([], ["ignored"])
    names, refusals = rank([HOST], DEMAND, wanted="hv-z", ignored=frozenset())
    assert (names, [r.code for r in refusals]) == ([], ["unknown_host"])
