"""Which guests of a dead host have to stay, by where their disks are."""

from typing import Any
from uuid import UUID

import pytest

from models.fencing import Resident
from tasks.evacuation_choice import find_refusal, identify_pools

POOLS: dict[str, Any] = {
    "local": {"shared": False},
    "shared": {"shared": True, "id": "this"},
    "shared_too": {"shared": True, "id": "that"},
    "untold": {"shared": True},
}


def guest(*pools: str) -> Resident:
    return Resident(UUID(int=1), "g", "active", list(pools), None)


@pytest.mark.parametrize(
    ("pools", "said"),
    [
        (["shared"], None),
        (["shared", "shared_too"], None),
        (["local"], "The disks of g are in pool 'local'"),
        (["shared", "local"], "Disks of g are in pool 'local'"),
        (["local", "shared"], "Disks of g are in pool 'local'"),
        (["shared", "untold"], "which directory its pool 'untold' is"),
        (["shared", "gone"], "Disks of g are in pool 'gone'"),
    ],
)
def test_every_pool_of_a_guest_must_be_seen_elsewhere(pools: list[str], said: str | None) -> None:
    refusal = find_refusal(guest(*pools), host="hv-a", pools=POOLS)
    assert (refusal is None) == (said is None)
    assert said is None or said in str(refusal)


def test_the_directories_are_told_by_pool() -> None:
    told = identify_pools(guest("shared", "shared_too"), POOLS)
    assert told == {"shared": "this", "shared_too": "that"}
