"""Files and ports of a host: identity, shared-storage probe, overlays, console, reach."""

import socket
import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from innkeeper.errors import FormatMismatch, HypervisorError
from virt.console import ConsoleWatch, clean, size_bytes, tail
from virt.disks import create_overlay, ensure_removed, free_bytes, get_usage, qemu_img_info
from virt.identity import find_host_id, get_or_create
from virt.reach import probe_tcp
from virt.sharing import read_probe, remove_probe, write_probe

MIB = 1 << 20


def test_an_identity_is_made_once_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "state" / "host-id"
    assert find_host_id(path) is None
    made: list[UUID] = []
    threads = [threading.Thread(target=lambda: made.append(get_or_create(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert set(made) == {get_or_create(path)}
    assert [entry.name for entry in path.parent.iterdir()] == ["host-id"]
    path.write_text("nonsense")
    with pytest.raises(HypervisorError, match="host-id"):
        get_or_create(path)


def test_only_the_very_directory_shows_the_probe(tmp_path: Path) -> None:
    token, here, there = uuid4(), tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write_probe(here, token)
    write_probe(here, token)
    assert read_probe(here, token)
    assert not read_probe(there, token)
    assert not read_probe(here, uuid4())
    assert not read_probe(tmp_path / "none", token)
    remove_probe(here, token)
    remove_probe(here, token)
    assert not read_probe(here, token)
    assert list(here.iterdir()) == []


def test_overlays_are_made_once(tmp_path: Path) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "guest" / "root.qcow2"
    create_overlay(base, backing_path=raw_file(tmp_path), backing_format="raw", size_bytes=4 * MIB)
    wanted = {"backing_path": base, "backing_format": "qcow2", "size_bytes": 8 * MIB}
    assert create_overlay(path, **wanted)  # type: ignore[arg-type]
    assert not create_overlay(path, **wanted)  # type: ignore[arg-type]
    info = qemu_img_info(path, "qcow2")
    assert (info.virtual_size_bytes, info.backing_path, info.backing_format) == (
        8 * MIB,
        str(base),
        "qcow2",
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["root.qcow2"]
    with pytest.raises(HypervisorError, match="there already"):
        create_overlay(path, backing_path=base, backing_format="qcow2", size_bytes=9 * MIB)
    path.write_bytes(b"something else")
    with pytest.raises(HypervisorError, match="not a qcow2"):
        create_overlay(path, **wanted)  # type: ignore[arg-type]
    assert path.read_bytes() == b"something else"
    assert ensure_removed(path)
    assert not ensure_removed(path)
    with pytest.raises(HypervisorError, match="make the disk"):
        create_overlay(path, backing_path=tmp_path / "none", backing_format="raw", size_bytes=MIB)
    assert list(path.parent.iterdir()) == []


def raw_file(directory: Path) -> Path:
    path = directory / "base.raw"
    with path.open("wb") as file:
        file.truncate(MIB)
    return path


def test_qemu_img_does_not_guess(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    assert qemu_img_info(raw, "raw").virtual_size_bytes == MIB
    with pytest.raises(FormatMismatch):
        qemu_img_info(raw, "qcow2")
    with pytest.raises(FileNotFoundError):
        qemu_img_info(tmp_path / "none", "raw")
    with pytest.raises((ValueError, FileNotFoundError)):
        qemu_img_info(Path("json:{}"), "raw")


def test_sizes(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    usage = get_usage(raw)
    assert (usage.apparent_bytes, usage.allocated_bytes) == (MIB, 0)
    assert free_bytes(tmp_path / "not" / "yet") > 0


def test_a_console_cannot_drive_a_terminal() -> None:
    text = clean(
        b"\x1b[2J\x1b]0;title\x07Hi\r\nthere\x00\x08\x9b1m\xff \x1b[31mred\x1b[0m\xe2\x80\xae!"
    )
    assert text.startswith("Hi\nthere")
    assert text.endswith("red!")
    assert not any(ord(char) < 32 and char not in "\n\t" for char in text)
    assert "title" not in text


def test_the_tail_of_a_console(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    assert tail(path) == ""
    assert size_bytes(path) == 0
    path.write_bytes(b"a" * 10_000 + b"end")
    assert len(tail(path, 100)) == 100
    assert tail(path, 100).endswith("end")


def test_first_bytes_after_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"an earlier boot")
    watch = ConsoleWatch(path, size_bytes(path))
    assert not watch.has_output()
    with path.open("ab") as file:
        file.write(b"!")
    assert watch.has_output()
    assert not ConsoleWatch(tmp_path / "none").has_output()
    rotated = ConsoleWatch(path, 1000)
    assert rotated.has_output()


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert probe_tcp("127.0.0.1", port, 1) is None
    refused = probe_tcp("127.0.0.1", port, 1)
    assert refused is not None
    assert "refused" in refused
    assert "not known" in (probe_tcp("no-such-host.invalid", 1, 1) or "not known")
