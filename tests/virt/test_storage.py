"""Guests' disks on real file systems: what is in them, what they share, what a kill leaves."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.errors import Cancelled, HostUnsuitable, HypervisorError, InvalidRequest
from tests.virt.loop_mounts import count_shared_extents, mounted
from virt.qemu_img import qemu_img, qemu_img_info
from virt.storage.backend import BaseImage, Made, Watch
from virt.storage.choosing import get_backend
from virt.storage.qcow2 import Qcow2Backend
from virt.storage.raw import RawBackend

MIB = 1 << 20


@pytest.fixture(params=["xfs", "btrfs"])
def sharing_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system whose files can share blocks."""
    with mounted(request.param, tmp_path) as point:
        yield point


def raw_base(directory: Path, *, data_mib: int = 8, size_mib: int = 64) -> BaseImage:
    """An image with some bytes at its beginning and its end, and a hole between them."""
    path = directory / "base.raw"
    generator = random.Random(data_mib)
    with path.open("wb") as file:
        file.write(generator.randbytes(data_mib * MIB // 2))
        file.seek(size_mib * MIB - data_mib * MIB // 2)
        file.write(generator.randbytes(data_mib * MIB // 2))
    path.chmod(0o444)
    return BaseImage(path=path, format="raw")


def allocated_bytes(path: Path) -> int:
    os.sync()
    return path.stat().st_blocks * 512


def starts_with(path: Path, base: BaseImage) -> bool:
    with path.open("rb") as disk, base.path.open("rb") as image:
        return all(disk.read(len(chunk)) == chunk for chunk in iter(lambda: image.read(MIB), b""))


def blkid(path: Path) -> dict[str, str]:
    told = subprocess.run(
        ["blkid", "-p", "-o", "export", str(path)], capture_output=True, text=True
    )
    return dict(line.split("=", 1) for line in told.stdout.splitlines())


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_raw_root_disk_shares_its_blocks_with_the_image(sharing_directory: Path) -> None:
    base = raw_base(sharing_directory, data_mib=64, size_mib=128)
    os.sync()
    before = os.statvfs(sharing_directory)
    disks = RawBackend(sharing_directory / "guest")
    assert disks.create_root("root.raw", base=base, size_bytes=256 * MIB) is Made.REFLINK
    os.sync()
    after = os.statvfs(sharing_directory)
    path = disks.directory / "root.raw"
    assert (before.f_bavail - after.f_bavail) * after.f_frsize < 8 * MIB
    assert count_shared_extents(path) > 0
    assert path.stat().st_size == disks.get_size_bytes("root.raw") == 256 * MIB
    assert starts_with(path, base)
    with path.open("r+b") as file:
        file.write(b"the guest's own")
    assert not starts_with(path, base)
    with base.path.open("rb") as file:
        assert file.read(15) != b"the guest's own"


def test_a_preallocated_root_disk_shares_nothing(sharing_directory: Path) -> None:
    base = raw_base(sharing_directory, data_mib=16, size_mib=64)
    disks = RawBackend(sharing_directory / "guest")
    made = disks.create_root("root.raw", base=base, size_bytes=96 * MIB, preallocation="full")
    assert made is Made.COPY
    path = disks.directory / "root.raw"
    assert count_shared_extents(path) == 0
    assert allocated_bytes(path) >= 96 * MIB
    assert starts_with(path, base)


def test_where_nothing_can_be_shared_only_data_is_copied(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path) as point:
        base = raw_base(point, data_mib=40, size_mib=300)
        seen: list[tuple[int, int]] = []
        disks = RawBackend(point / "guest")
        watch = Watch(on_progress=lambda done, total: seen.append((done, total)))
        made = disks.create_root("root.raw", base=base, size_bytes=400 * MIB, watch=watch)
        assert made is Made.COPY
        path = disks.directory / "root.raw"
        assert 40 * MIB <= allocated_bytes(path) < 48 * MIB
        assert path.stat().st_size == 400 * MIB
        assert starts_with(path, base)
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1] >= 40 * MIB
        assert disks.create_root("root.raw", base=base, size_bytes=400 * MIB) is Made.FOUND


def qcow2_base(directory: Path) -> BaseImage:
    raw, path = raw_base(directory), directory / "base.qcow2"
    argv = ["convert", "-c", "-f", "raw", "-O", "qcow2", str(raw.path), str(path)]
    qemu_img(argv, what="make an image")
    return BaseImage(path=path, format="qcow2")


@pytest.mark.parametrize("preallocation", ["off", "full"])
def test_a_raw_root_disk_of_a_qcow2_image_is_converted(tmp_path: Path, preallocation: Any) -> None:
    base = qcow2_base(tmp_path)
    disks = RawBackend(tmp_path / "guest")
    seen: list[int] = []
    made = disks.create_root(
        "root.raw",
        base=base,
        size_bytes=96 * MIB,
        preallocation=preallocation,
        watch=Watch(on_progress=lambda done, _total: seen.append(done)),
    )
    path = disks.directory / "root.raw"
    assert made is Made.CONVERSION
    assert seen == sorted(seen)
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (96 * MIB, 0o600)
    assert starts_with(path, BaseImage(path=tmp_path / "base.raw", format="raw"))
    assert (allocated_bytes(path) >= 96 * MIB) is (preallocation == "full")
    assert names_in(disks.directory) == ["root.raw"]


def test_a_full_file_system_sends_the_guest_elsewhere(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path, size_mib=64) as point:
        for disks in (RawBackend(point / "guest"), Qcow2Backend(point / "guest")):
            with pytest.raises(HostUnsuitable, match="no room"):
                disks.create_empty("vdb", size_bytes=100 * MIB, preallocation="full")
            assert names_in(point / "guest") == []


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
@pytest.mark.parametrize(
    ("content", "label", "told"),
    [
        ("none", None, {}),
        ("ext4", "scratch", {"TYPE": "ext4", "LABEL": "scratch"}),
        ("ext4", None, {"TYPE": "ext4"}),
        ("vfat", "DATA", {"TYPE": "vfat", "LABEL": "DATA"}),
        ("swap", "pages", {"TYPE": "swap", "LABEL": "pages"}),
    ],
)
@pytest.mark.parametrize("preallocation", ["off", "metadata", "full"])
def test_empty_disks_carry_what_was_asked_for(
    tmp_path: Path, disk_format: Any, content: Any, label: str | None, told: Any, preallocation: Any
) -> None:
    disks = get_backend(disk_format, tmp_path / "guest")
    wanted = {"content": content, "label": label, "preallocation": preallocation}
    name = f"vdb.{disk_format}"
    made = disks.create_empty(name, size_bytes=32 * MIB, **wanted)
    assert made is (Made.EMPTY if content == "none" else Made.FORMATTED)
    assert names_in(tmp_path / "guest") == [name]
    path = tmp_path / "guest" / name
    assert path.stat().st_mode & 0o777 == 0o600
    info = qemu_img_info(path, disk_format)
    assert (info.virtual_size_bytes, info.backing_path) == (32 * MIB, None)
    if preallocation == "full":
        assert allocated_bytes(path) >= 32 * MIB
    else:
        assert allocated_bytes(path) < 8 * MIB
    raw = path
    if disk_format == "qcow2":
        raw = tmp_path / "seen.raw"
        qemu_img(["convert", "-f", "qcow2", "-O", "raw", str(path), str(raw)], what="look into it")
    seen = blkid(raw)
    assert {key: seen.get(key) for key in ("TYPE", "LABEL")} == {"TYPE": None, "LABEL": None} | told
    assert disks.create_empty(name, size_bytes=32 * MIB, **wanted) is Made.FOUND
    with pytest.raises(HypervisorError, match="there already"):
        disks.create_empty(name, size_bytes=33 * MIB, **wanted)
    assert disks.remove(name)
    assert not disks.remove(name)


def test_an_overlay_is_not_preallocated(tmp_path: Path) -> None:
    base = raw_base(tmp_path)
    disks = Qcow2Backend(tmp_path / "guest")
    with pytest.raises(InvalidRequest, match="overlay"):
        disks.create_root("root.qcow2", base=base, size_bytes=64 * MIB, preallocation="metadata")
    assert disks.create_root("root.qcow2", base=base, size_bytes=64 * MIB) is Made.OVERLAY
    assert disks.describe("root.qcow2", base).backing == base


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_disks_grow_and_never_shrink(tmp_path: Path, disk_format: Any) -> None:
    disks = get_backend(disk_format, tmp_path)
    disks.create_empty("d", size_bytes=4 * MIB)
    disks.resize("d", 8 * MIB)
    disks.resize("d", 4 * MIB)
    assert disks.get_size_bytes("d") == 8 * MIB
    with pytest.raises(FileNotFoundError):
        disks.resize("none", MIB)


def test_a_resized_raw_disk_is_not_looked_into(tmp_path: Path) -> None:
    """A guest may write a qcow2 header that names a file of the host into its raw disk."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 512)
    disks = RawBackend(tmp_path / "guest")
    disks.create_empty("root.raw", size_bytes=MIB)
    trap = ["-o", f"data_file={secret},data_file_raw=on", str(tmp_path / "trap"), "64K"]
    qemu_img(["create", "-q", "-f", "qcow2", *trap], what="set a trap")
    header, size = (tmp_path / "trap").read_bytes(), secret.stat().st_size
    with (disks.directory / "root.raw").open("r+b") as file:
        file.write(header)
    disks.resize("root.raw", 2 * MIB)
    assert secret.stat().st_size == size
    assert disks.get_size_bytes("root.raw") == 2 * MIB


def test_a_stopped_copy_leaves_nothing(tmp_path: Path) -> None:
    base = raw_base(tmp_path, data_mib=64)
    disks = RawBackend(tmp_path / "guest")

    def stop(done: int, total: int) -> None:
        raise Cancelled("somebody cancelled it")

    with pytest.raises(Cancelled):
        disks.create_root("r", base=base, size_bytes=64 * MIB, watch=Watch(on_progress=stop))
    assert names_in(disks.directory) == []


_VICTIM = """
import os, signal, sys
from pathlib import Path
import virt.storage.publishing as publishing
from virt.storage.backend import BaseImage, Watch
from virt.storage.choosing import get_backend
import virt.storage.formatting, virt.storage.qcow2, virt.storage.raw
moment, disk_format, directory, base = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
disks = get_backend(disk_format, Path(directory))
watch = Watch()
if moment == "copying":
    watch = Watch(on_progress=die)
elif moment == "converting":
    import virt.image_convert
    virt.image_convert.sync_directory = virt.image_convert.os.fchmod = die
elif moment == "formatting":
    virt.storage.raw.format_file = virt.storage.qcow2.format_file = die
elif moment == "syncing":
    publishing.sync_file = die
elif moment == "linked":
    publishing.sync_directory = die
if moment in ("copying", "converting"):
    image = BaseImage(path=Path(base), format="raw" if moment == "copying" else "qcow2")
    disks.create_root("d", base=image, size_bytes=64 << 20, watch=watch)
else:
    disks.create_empty("d", size_bytes=64 << 20, content="ext4")
sys.exit("it lived")
"""


@pytest.mark.parametrize(
    ("moment", "disk_format"),
    [
        ("copying", "raw"),
        ("converting", "raw"),
        *((moment, f) for moment in ("formatting", "syncing", "linked") for f in ("raw", "qcow2")),
    ],
)
def test_a_killed_maker_is_replaced(tmp_path: Path, moment: str, disk_format: Any) -> None:
    base = qcow2_base(tmp_path) if moment == "converting" else raw_base(tmp_path, data_mib=32)
    directory = tmp_path / "guest"
    argv = [sys.executable, "-c", _VICTIM, moment, disk_format, str(directory), str(base.path)]
    assert subprocess.run(argv, capture_output=True, timeout=60).returncode == -9
    is_whole = moment == "linked"
    assert ("d" in names_in(directory)) is is_whole
    assert len(names_in(directory)) > is_whole, "the victim died too early"
    disks = get_backend(disk_format, directory)
    if moment in ("copying", "converting"):
        made = disks.create_root("d", base=base, size_bytes=64 * MIB)
        assert starts_with(directory / "d", BaseImage(path=tmp_path / "base.raw", format="raw"))
    else:
        made = disks.create_empty("d", size_bytes=64 * MIB, content="ext4")
    assert (made is Made.FOUND) is is_whole
    assert disks.get_size_bytes("d") == 64 * MIB
    assert names_in(directory) == ["d"]
