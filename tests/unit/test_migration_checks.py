"""What a migration's checks decide by themselves: versions, devices, samples, and broken checks."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.host import Host
from tasks.failed_check import Failure, failure
from tasks.migration_checks.check import Check, list_failures, run_checks, without_copy
from tasks.migration_checks.versions import compare_hypervisors
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
        left = without_copy(outcomes, shared=shared, own="p")
        return [f"{each['check']} {each.get('pool', '')}".strip() for each in left]

    assert kept() == ["disk p", "disk q", "base", "cpu"]
    assert kept("p") == ["disk q", "cpu"]
    assert kept("q") == ["disk p", "base", "cpu"]
    assert kept("p", "q") == ["cpu"]


def test_samples_tell_two_files_apart(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(3 * BLOCK_BYTES))
    before = find_fingerprint(small, "seed")
    small.write_bytes(bytes(3 * BLOCK_BYTES - 1) + b"X")
    assert find_fingerprint(small, "seed") != before
    large.write_bytes(bytes(3 * SAMPLES * BLOCK_BYTES))
    assert find_fingerprint(large, "seed") == find_fingerprint(large, "seed")
    assert find_fingerprint(tmp_path / "none", "seed") is None
