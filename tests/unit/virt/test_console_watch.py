"""A console is read in pieces: nothing twice, nothing without bound, nothing from before."""

from pathlib import Path

from virt.console import ConsoleWatch


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_line_that_comes_in_two_pieces(tmp_path: Path) -> None:
    path = tmp_path / "console"
    watch = ConsoleWatch(path)
    assert watch.read_lines() == []
    append(path, b"one\r\ntw")
    assert watch.read_lines() == [b"one", b"tw"]
    assert watch.read_lines() == []
    append(path, b"o\n")
    assert watch.read_lines() == [b"two"]


def test_what_stood_there_before_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "console"
    append(path, b"old\n")
    watch = ConsoleWatch(path, 4)
    assert not watch.has_output()
    append(path, b"new\n")
    assert watch.has_output()
    assert watch.read_lines() == [b"new"]


def test_a_file_that_was_cut_short_is_new(tmp_path: Path) -> None:
    path = tmp_path / "console"
    append(path, b"x" * 100)
    watch = ConsoleWatch(path)
    watch.read_lines()
    path.write_bytes(b"after\n")
    assert watch.read_lines() == [b"after"]


def test_of_a_flood_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "console"
    append(path, b"flood\n" * 1_000_000 + b"the end\n")
    watch = ConsoleWatch(path)
    lines = watch.read_lines()
    assert lines[-1] == b"the end"
    assert sum(len(line) for line in lines) < 512 * 1024


def test_a_line_without_an_end_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "console"
    watch = ConsoleWatch(path)
    for _ in range(20):
        append(path, b"y" * 100_000)
        assert all(len(line) <= 4096 for line in watch.read_lines())
