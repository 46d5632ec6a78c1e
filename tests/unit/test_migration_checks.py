"""What a migration's checks decide by themselves: versions, devices, samples, and broken checks."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from models.host import Host
from tasks.failed_check import Failure, failure
from tasks.migration_checks.check import Check, list_failures, run_checks, without_copy
from tasks.migration_checks.storage import check_room, find_too_large
from tasks.migration_checks.versions import compare_hypervisors
from virt.disks import free_bytes, get_file_system_id
from virt.fingerprint import BLOCK_BYTES, SAMPLES, find_fingerprint
from virt.migration_needs import read_needs


def host(name: str, qemu: str, libvirt: str = "9.0.0", kind: str = "QEMU") -> Host:
    return Host(name=name, qemu_version=qemu, libvirt_version=libvirt, hypervisor_type=kind)


@pytest.mark.parametrize(
    ("src", "dst", "machine", "said"),
    [
        (host("a", "7.2.22"), host("b", "7.2.1"), "pc-i440fx-7.2", None),
        (host("a", "7.2.0"), host("b", "9.1.0", "10.0.0"), "pc-q35-7.2", None),
        (host("a", "9.1.0"), host("b", "7.2.0"), "pc-q35-7.2", "QEMU 7.2.0, older than the 9.1.0"),
        (host("a", "7.2.0", "10.0.0"), host("b", "7.2.0"), "pc-q35-7.2", "libvirt 9.0.0, older"),
        (host("a", "7.2.0"), host("b", "7.2.0"), "pc-q35-8.0", "needs 8.0"),
        (host("a", "7.2.0"), host("b", "7.2.0", kind="Xen"), "pc-q35-7.2", "runs Xen"),
    ],
)
def test_a_hypervisor_goes_on_with_what_an_older_one_began(
    src: Host, dst: Host, machine: str, said: str | None
) -> None:
    found = [each["message"] for each in compare_hypervisors(src, dst, machine=machine)]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("<hostdev mode='subsystem' type='pci'/>", "host device of type pci"),
        ("<interface type='hostdev'/>", "network card of type hostdev"),
        ("<filesystem><driver type='virtiofs'/></filesystem>", "virtiofs"),
        ("<shmem name='m'/>", "shared memory m"),
        ("<disk device='disk'><target dev='vdb'/><transient/></disk>", "transient disk vdb"),
    ],
)
def test_what_is_bound_to_its_host_is_named(device: str, said: str) -> None:
    (found,) = read_needs(f"<domain><devices>{device}</devices></domain>").bound_devices
    assert said in found


def test_a_check_that_raises_is_a_failure_and_the_others_are_made() -> None:
    def broken(move: Any) -> Iterator[Failure]:
        yield failure("one", "first", "h")
        raise ValueError("boom")

    move: Any = SimpleNamespace(services=SimpleNamespace(name="hv-b"))
    checks = (Check("one", broken), Check("two", lambda _: (), is_of_copy=True))
    outcomes = run_checks(checks, move)
    assert [(each["check"], each["passed"]) for each in outcomes] == [
        ("one", False),
        ("one", False),
        ("two", True),
    ]
    assert "ValueError: boom" in list_failures(outcomes)[1]["message"]
    kept = without_copy(outcomes, shared={"p"}, own="p")
    assert [each["check"] for each in kept] == ["one", "one"]


def test_what_is_said_of_a_copy_counts_for_the_pools_that_are_copied() -> None:
    outcomes = [
        {"check": "disk", "pool": "p", "is_of_copy": True},
        {"check": "disk", "pool": "q", "is_of_copy": True},
        {"check": "base", "is_of_copy": True},
        {"check": "cpu"},
    ]

    def kept(*shared: str) -> list[str]:
        left = without_copy(outcomes, shared=set(shared), own="p")
        return [f"{each['check']} {each.get('pool', '')}".strip() for each in left]

    assert kept() == ["disk p", "disk q", "base", "cpu"]
    assert kept("p") == ["disk q", "cpu"]
    assert kept("q") == ["disk p", "base", "cpu"]
    assert kept("p", "q") == ["cpu"]


@pytest.mark.parametrize(
    ("shared", "counts"), [((), True), (("r",), True), (("p",), False), (("p", "q"), False)]
)
def test_what_is_said_of_pools_together_counts_while_all_are_copied(
    shared: tuple[str, ...], counts: bool
) -> None:
    outcome = {"check": "disk", "pools": ("p", "q"), "is_of_copy": True}
    assert without_copy([outcome], shared=set(shared), own="p") == [outcome] * counts


@pytest.mark.parametrize(
    ("needed_bytes", "found"),
    [
        ({}, []),
        ({"p": 10}, []),
        ({"p": 11}, [("p",)]),
        ({"p": 6, "q": 4}, []),
        ({"p": 6, "q": 5}, [("p", "q")]),
        # The smaller set says it all.
        ({"p": 11, "q": 5}, [("p",)]),
        ({"p": 5, "q": 4, "r": 2}, [("p", "q", "r")]),
        ({"p": 6, "q": 5, "r": 5}, [("p", "q"), ("p", "r")]),
        ({"p": 6, "q": 5, "r": 0}, [("p", "q")]),
    ],
)
def test_pools_on_one_file_system_have_its_room_together(
    needed_bytes: dict[str, int], found: list[tuple[str, ...]]
) -> None:
    assert find_too_large(needed_bytes, 10) == found


def test_the_room_of_a_file_system_is_not_counted_once_for_each_pool(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    assert get_file_system_id(elsewhere) != get_file_system_id(tmp_path)

    def refusals(directories: dict[str, Path]) -> list[tuple[str, ...]]:
        pools = [
            SimpleNamespace(name=name, instance_dir=lambda _, path=path, name=name: path / name)
            for name, path in directories.items()
        ]
        rows = [
            SimpleNamespace(
                target=name, pool=name, size_bytes=free_bytes(path) * 6 // 10, backing_sha256=None
            )
            for name, path in directories.items()
        ]
        move: Any = SimpleNamespace(
            database=SimpleNamespace(run=lambda _: rows),
            services=SimpleNamespace(name="hv-b"),
            instance=SimpleNamespace(id=uuid4(), pool="p"),
            pools=pools,
            hosts={},
            dst="hv-b",
            survey={},
            operation_id=uuid4(),
        )
        return [tuple(each["pools"]) for each in check_room(move)]

    assert refusals({"p": tmp_path}) == []
    assert refusals({"p": tmp_path, "q": elsewhere}) == []
    assert refusals({"p": tmp_path, "q": tmp_path}) == [("p", "q")]


def test_samples_tell_two_files_apart(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(3 * BLOCK_BYTES))
    before = find_fingerprint(small, "seed")
    small.write_bytes(bytes(3 * BLOCK_BYTES - 1) + b"X")
    assert find_fingerprint(small, "seed") != before
    large.write_bytes(bytes(3 * SAMPLES * BLOCK_BYTES))
    assert find_fingerprint(large, "seed") == find_fingerprint(large, "seed")
    assert find_fingerprint(tmp_path / "none", "seed") is None
