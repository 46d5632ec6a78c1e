"""Conversions in the cage: the same bytes, bounded, whole or not at all."""

import os
import subprocess
from pathlib import Path

import pytest

from innkeeper.errors import Cancelled, HostUnsuitable, ImageTooLarge, InnkeeperError, UnsafeImage
from tests.virt.small_disk import small_disk
from virt.cage import Cage, Limits, get_cage, name_file
from virt.image_convert import convert
from virt.qemu_img import qemu_img_info

MIB = 1 << 20


def make_raw(path: Path, *, data_mib: int = 4, size_mib: int = 64) -> Path:
    with path.open("wb") as file:
        file.write(os.urandom(data_mib * MIB))
        file.truncate(size_mib * MIB)
    return path


def test_there_and_back_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "a.raw")
    told: list[float] = []
    size = convert(
        raw, "raw", tmp_path / "b.qcow2", "qcow2", max_bytes=64 * MIB, on_progress=told.append
    )
    assert size == 64 * MIB
    assert qemu_img_info(tmp_path / "b.qcow2", "qcow2").virtual_size_bytes == 64 * MIB
    convert(
        tmp_path / "b.qcow2", "qcow2", tmp_path / "c.raw", "raw", max_bytes=64 * MIB, mode=0o600
    )
    back = tmp_path / "c.raw"
    assert back.read_bytes() == raw.read_bytes()
    about = back.stat()
    assert (about.st_uid, about.st_mode & 0o777) == (os.geteuid(), 0o600)
    assert about.st_blocks * 512 < 16 * MIB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.raw", "b.qcow2", "c.raw"]


def test_preallocation_is_claimed(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "a.raw", data_mib=1, size_mib=8)
    convert(raw, "raw", tmp_path / "b.raw", "raw", max_bytes=8 * MIB, preallocation="full")
    assert (tmp_path / "b.raw").stat().st_blocks * 512 >= 8 * MIB


def test_a_disk_beyond_the_limit_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", bomb, "1T"], check=True)
    with pytest.raises(ImageTooLarge):
        convert(bomb, "qcow2", tmp_path / "b.raw", "raw", max_bytes=64 * MIB)
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.qcow2"]


def test_a_compressed_bomb_cannot_write_more_than_the_disk(tmp_path: Path) -> None:
    raw, bomb = tmp_path / "a.raw", tmp_path / "bomb.qcow2"
    raw.write_bytes(b"\xff" * (48 * MIB))
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, bomb], check=True)
    assert bomb.stat().st_size < MIB
    cage = get_cage()
    target = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    source = os.open(bomb, os.O_RDONLY)
    cage.give(target)
    done = cage.run(
        [
            *("qemu-img", "convert", "-f", "qcow2", "-O", "raw"),
            *(name_file(source), name_file(target)),
        ],
        files=(source, target),
        limits=Limits(timeout_s=60, cpu_s=30, written_bytes=16 * MIB),
    )
    assert done.returncode != 0
    assert os.fstat(target).st_size <= 16 * MIB
    os.close(source)
    os.close(target)


def test_what_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "a.raw", data_mib=64)
    (tmp_path / f".b.qcow2.{'0' * 32}.converting").write_bytes(b"of a process that died")

    def check() -> None:
        raise Cancelled("Somebody cancelled.")

    slow = Cage(None, False)
    object.__setattr__(slow, "run", _slowed(slow))
    with pytest.raises(Cancelled):
        convert(
            raw, "raw", tmp_path / "b.qcow2", "qcow2", max_bytes=64 * MIB, check=check, cage=slow
        )
    with pytest.raises(UnsafeImage, match=r"longer than 0\.1 s"):
        convert(
            raw, "raw", tmp_path / "b.qcow2", "qcow2", max_bytes=64 * MIB, timeout_s=0.1, cage=slow
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.raw"]


def _slowed(cage: Cage):  # type: ignore[no-untyped-def]
    run = cage.run

    def slowly(argv, **arguments):  # type: ignore[no-untyped-def]
        if "convert" in argv:
            argv = ["sleep", "60"]
        return run(argv, **arguments)

    return slowly


def test_a_full_disk_is_the_hosts_failure(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "a.raw", data_mib=16)
    with small_disk(tmp_path / "small", mib=8) as small:
        with pytest.raises(HostUnsuitable):
            convert(raw, "raw", small / "b.qcow2", "qcow2", max_bytes=64 * MIB)
        assert list(small.iterdir()) == []


def test_a_wrong_format_is_told(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "a.raw", data_mib=1)
    with pytest.raises(InnkeeperError):
        convert(raw, "qcow2", tmp_path / "b.raw", "raw", max_bytes=64 * MIB)
    assert [path.name for path in tmp_path.iterdir()] == ["a.raw"]


def test_the_cage_takes_rights_away(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    limits = Limits(timeout_s=30, cpu_s=5)
    cage = get_cage()
    assert cage.user == "nobody"
    said = cage.run(["sh", "-c", f"id -un; cat {secret}; ls /sys/class/net; env"], limits=limits)
    assert said.stdout.splitlines()[0] == "nobody"
    assert "secret" not in said.stdout
    assert "Permission denied" in said.stderr
    links = cage.run(["cat", "/proc/net/dev"], limits=limits).stdout
    assert "lo:" in links
    assert "eth" not in links
    # The control: without the cage the same is seen.
    open_cage = Cage(None, False)
    assert "secret" in open_cage.run(["cat", str(secret)], limits=limits).stdout
    # A program that talks without end is stopped by the limit on what it writes.
    loud = cage.run(["yes"], limits=limits)
    assert loud.was_killed
    assert len(loud.stdout) <= MIB
