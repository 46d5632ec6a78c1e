"""What of a guest's memory is there, by the kernel's own figures."""

from pathlib import Path
from uuid import uuid4

from virt.resident_memory import MOST_BYTES, find_resident_bytes, read_resident_bytes

MIB = 2**20


def mapping(size_mib: int, rss_mib: int, huge_mib: int = 0) -> str:
    return (
        "7f0000000000-7f0010000000 rw-p 00000000 00:00 0 \n"
        f"Size:           {size_mib << 10:8} kB\n"
        "KernelPageSize:        4 kB\n"
        f"Rss:            {rss_mib << 10:8} kB\n"
        f"Private_Hugetlb:{huge_mib << 10:8} kB\n"
        "VmFlags: rd wr mr mw me ac\n"
    )


def test_only_the_mapping_of_the_guests_memory_counts() -> None:
    smaps = mapping(1023, 54) + mapping(256, 130) + mapping(5, 5)
    assert read_resident_bytes(smaps, 256 * MIB) == 130 * MIB


def test_huge_pages_are_memory_too() -> None:
    assert read_resident_bytes(mapping(256, 0, huge_mib=64), 256 * MIB) == 64 * MIB


def test_memory_in_parts_is_not_guessed_at() -> None:
    assert read_resident_bytes(mapping(128, 60) + mapping(64, 10), 256 * MIB) is None


def make_process(proc: Path, pid: int, comm: str, cmdline: str, smaps: str) -> None:
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "comm").write_text(comm + "\n")
    (directory / "cmdline").write_text(cmdline.replace(" ", "\0") + "\0")
    (directory / "smaps").write_text(smaps)


def test_the_guests_own_qemu_is_asked(tmp_path: Path) -> None:
    mine, other = uuid4(), uuid4()
    make_process(tmp_path, 10, "bash", f"grep -uuid {mine}", mapping(256, 1))
    make_process(tmp_path, 11, "qemu-system-x86", f"q -uuid {other} -m 256", mapping(256, 2))
    make_process(tmp_path, 12, "qemu-system-x86", f"q -uuid {mine} -m 256", mapping(256, 3))
    (tmp_path / "self").mkdir()
    assert find_resident_bytes(mine, 256 * MIB, proc=tmp_path) == 3 * MIB
    assert find_resident_bytes(uuid4(), 256 * MIB, proc=tmp_path) is None


def test_a_guest_too_large_to_look_through_is_not_looked_at(tmp_path: Path) -> None:
    mine = uuid4()
    make_process(tmp_path, 12, "qemu-system-x86", f"q -uuid {mine} -m", mapping(1 << 17, 3))
    assert find_resident_bytes(mine, 2 * MOST_BYTES, proc=tmp_path) is None
