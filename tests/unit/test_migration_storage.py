"""How disks travel, by what the hosts have seen of each other."""

from typing import Any

import pytest

from innkeeper.states import Handover, Storage
from innkeeper.types import MigrationPolicy
from tasks.migration_storage import (
    StorageLook,
    choose_storage,
    explain_storage,
    find_storage_failures,
)


def look(**changes: Any) -> StorageLook:
    seen: dict[str, Any] = {
        "pool": "p",
        "src": "hv-a",
        "dst": "hv-b",
        "file_system": "fuse.glusterfs",
        "is_shared": True,
        "is_lock_seen": True,
    }
    return StorageLook(**{**seen, **changes})


GLUSTER = look()
UNLOCKED = look(is_lock_seen=False)
LOCAL = look(file_system="ext4", is_shared=False, is_lock_seen=False)
OCCUPIED = look(file_system="ext4", is_shared=False, is_lock_seen=False, has_files=True)
BOUND = look(file_system="ext4")
VOUCHED = look(file_system="ext4", is_trusted=True)
CIFS = look(file_system="cifs")
LOCAL_TOO = look(pool="q", file_system="ext4", is_shared=False, is_lock_seen=False)
GLUSTER_TOO = look(pool="q")
TWIN = look(pool="q", file_system="ext4", is_shared=False, is_lock_seen=False, twin="p")


@pytest.mark.parametrize(
    ("seen", "chosen"),
    [
        ((GLUSTER,), Storage.SHARED),
        ((LOCAL,), Storage.BLOCK),
        ((GLUSTER, GLUSTER_TOO), Storage.SHARED),
        ((LOCAL, LOCAL_TOO), Storage.BLOCK),
        ((GLUSTER, LOCAL_TOO), Storage.MIXED),
        ((LOCAL, GLUSTER_TOO), Storage.MIXED),
    ],
)
def test_disks_travel_by_what_was_seen(seen: tuple[StorageLook, ...], chosen: Storage) -> None:
    assert choose_storage(seen) == chosen


def test_the_reason_is_told() -> None:
    assert explain_storage((GLUSTER,)) == (
        "shared: hv-a and hv-b read each other's probe in pool p (fuse.glusterfs)"
    )
    assert explain_storage((LOCAL,)) == "block: hv-a does not see the probe of hv-b in pool p"
    assert explain_storage((LOCAL, GLUSTER_TOO)) == (
        "mixed: hv-a does not see the probe of hv-b in pool p; hv-a and hv-b read each other's "
        "probe in pool q (fuse.glusterfs)"
    )


@pytest.mark.parametrize(
    ("seen", "storage", "handover", "checks"),
    [
        (GLUSTER, "auto", "safe", []),
        (GLUSTER, "auto", "fast", []),
        (GLUSTER, "block", "safe", ["storage"]),
        (UNLOCKED, "auto", "safe", []),
        (UNLOCKED, "auto", "fast", ["handover"]),
        (LOCAL, "auto", "safe", []),
        (LOCAL, "block", "safe", []),
        (LOCAL, "shared", "safe", ["storage"]),
        (LOCAL, "auto", "fast", ["handover"]),
        (LOCAL, "shared", "fast", ["storage", "handover"]),
        (OCCUPIED, "auto", "safe", ["disk_exists"]),
        (BOUND, "auto", "safe", ["coherence"]),
        (BOUND, "auto", "fast", ["coherence", "handover"]),
        (VOUCHED, "auto", "safe", []),
        (VOUCHED, "auto", "fast", []),
        (CIFS, "auto", "safe", []),
        (CIFS, "auto", "fast", ["handover"]),
    ],
)
def test_what_cannot_be_is_refused(
    seen: StorageLook, storage: str, handover: str, checks: list[str]
) -> None:
    policy = MigrationPolicy(storage=Storage(storage), handover=Handover(handover))
    found = find_storage_failures(policy, (seen,))
    assert [failure["check"] for failure in found] == checks
    assert all(failure["hint"] for failure in found)


@pytest.mark.parametrize(
    ("seen", "storage", "handover", "checks", "hint"),
    [
        ((GLUSTER, LOCAL_TOO), "auto", "safe", [], ""),
        ((GLUSTER, LOCAL_TOO), "mixed", "safe", [], ""),
        ((GLUSTER, LOCAL_TOO), "shared", "safe", ["storage"], "--storage mixed"),
        ((GLUSTER, LOCAL_TOO), "block", "safe", ["storage"], "--storage mixed"),
        ((LOCAL, GLUSTER_TOO), "auto", "fast", ["handover"], "--handover safe"),
        ((GLUSTER, GLUSTER_TOO), "auto", "fast", [], ""),
        ((GLUSTER, GLUSTER_TOO), "mixed", "safe", ["storage"], "--storage shared"),
        ((LOCAL, LOCAL_TOO), "mixed", "safe", ["storage"], "--storage block"),
        ((LOCAL, LOCAL_TOO), "shared", "safe", ["storage", "storage"], "--storage block"),
        ((GLUSTER, TWIN), "auto", "safe", ["pool"], "of its own"),
        ((GLUSTER, look(pool="q", is_lock_seen=False)), "auto", "fast", ["handover"], ""),
        ((OCCUPIED, GLUSTER_TOO), "auto", "safe", ["disk_exists"], ""),
        ((LOCAL, look(pool="q", has_files=True)), "auto", "safe", [], ""),
    ],
)
def test_each_pool_is_judged_for_itself(
    seen: tuple[StorageLook, ...], storage: str, handover: str, checks: list[str], hint: str
) -> None:
    policy = MigrationPolicy(storage=Storage(storage), handover=Handover(handover))
    found = find_storage_failures(policy, seen)
    assert [failure["check"] for failure in found] == checks
    assert all(hint in failure["hint"] for failure in found)
