"""A console that takes no more than its share of the disk, while its guest goes on writing."""

import os
import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import OperationalError

from innkeeper.states import BootStage
from tests.virt.boot_sectors import flooding
from tests.virt.conftest import Host, MakeGuest
from tests.waiting import PATIENCE_S, wait_until
from virt import console_cap
from virt.boot import wait_for_boot
from virt.console import ConsoleWatch, size_bytes, tail
from virt.console_cap import cap_console, disk_bytes
from workers.consoles import ConsoleKeeper

MIB = 1024 * 1024


@pytest.fixture
def console(workdir: Path) -> Path:
    """The file of a console that nobody writes to, beside those of the guests."""
    return workdir / f"{uuid4()}.log"


def number_lines(console: Path, count: int, first: int = 0) -> None:
    with console.open("ab") as file:
        for number in range(first, first + count):
            file.write(b"%015d\n" % number)


def test_the_old_goes_and_the_new_stays(console: Path) -> None:
    number_lines(console, 4 * MIB // 16)
    size = size_bytes(console)
    end = tail(console)
    watch = ConsoleWatch(console, size)
    assert cap_console(console, max_bytes=MIB) > 2 * MIB
    assert disk_bytes(console) <= MIB
    assert size_bytes(console) == size
    assert tail(console) == end
    assert not watch.has_output()
    number_lines(console, 1, first=7)
    assert watch.read_lines() == [b"%015d" % 7]
    assert cap_console(console, max_bytes=MIB) == 0


def test_no_byte_is_lost_while_somebody_writes(console: Path) -> None:
    count = 8 * MIB // 16
    writer = threading.Thread(target=number_lines, args=(console, count))
    writer.start()
    while writer.is_alive():
        cap_console(console, max_bytes=MIB)
    writer.join()
    cap_console(console, max_bytes=MIB)
    assert disk_bytes(console) <= MIB
    kept = console.read_bytes()[-MIB // 4 :].split()
    assert [int(line) for line in kept] == list(range(count - len(kept), count))


def test_where_files_cannot_have_holes(console: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, length: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(console_cap, "_punch", refuse)
    number_lines(console, 4 * MIB // 16)
    end = tail(console)
    cap_console(console, max_bytes=MIB)
    assert size_bytes(console) == MIB // 2
    assert tail(console) == end


def test_a_small_one_and_a_missing_one_are_left_alone(console: Path) -> None:
    assert cap_console(console, max_bytes=MIB) == 0
    number_lines(console, 100)
    assert cap_console(console, max_bytes=MIB) == 0
    assert size_bytes(console) == 1600


def test_each_guest_has_its_share(tmp_path: Path, workdir: Path) -> None:
    directory = workdir / f"consoles-{tmp_path.name}"
    directory.mkdir()
    ids = [uuid4() for _ in range(3)]
    for instance_id in ids:
        number_lines(directory / f"{instance_id}.log", 20 * MIB // 16)
    (directory / "notes.log").write_bytes(bytes(20 * MIB))
    asked: list[list[UUID]] = []

    def find(instance_ids: object) -> dict[UUID, int | None]:
        asked.append(sorted(instance_ids))  # type: ignore[call-overload]
        return {ids[0]: 2, ids[1]: None}

    keeper = ConsoleKeeper(directory, find)
    keeper.look()
    taken = [disk_bytes(directory / f"{instance_id}.log") for instance_id in ids]
    assert taken[0] <= 2 * MIB
    # A spec that says nothing and a guest without a record have the usual share.
    assert all(4 * MIB < one <= 16 * MIB for one in taken[1:])
    assert disk_bytes(directory / "notes.log") >= 20 * MIB
    keeper.look()
    assert asked == [sorted(ids)]


def test_without_postgres_the_usual_share_counts(tmp_path: Path, workdir: Path) -> None:
    directory = workdir / f"consoles-{tmp_path.name}"
    directory.mkdir()
    path = directory / f"{uuid4()}.log"
    number_lines(path, 20 * MIB // 16)

    def find(instance_ids: object) -> dict[UUID, int | None]:
        raise OperationalError("select", {}, Exception("gone"))

    ConsoleKeeper(directory, find).look()
    assert disk_bytes(path) <= 16 * MIB


@pytest.mark.lab
def test_a_guest_that_floods_its_console(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest(sector=flooding())
    src.hypervisor.define(guest.xml)
    src.hypervisor.ensure_started(guest.id)
    keeper = ConsoleKeeper(guest.directory, lambda _ids: {guest.id: 1})
    reached = wait_for_boot(
        src.hypervisor,
        guest.id,
        wanted=BootStage.CONSOLE,
        timeout_s=PATIENCE_S,
        console_path=guest.console,
    )
    assert reached is BootStage.CONSOLE
    wait_until(lambda: keeper.look() > 0, timeout_s=2 * PATIENCE_S, what="the console was cut")
    written = size_bytes(guest.console)
    assert written > MIB
    assert disk_bytes(guest.console) < MIB
    # It writes on behind the hole, and what is read is what it writes.
    wait_until(lambda: size_bytes(guest.console) > written, what="the guest writes on")
    assert "flood flood" in tail(guest.console)
