"""Showing a lab's logs."""

from __future__ import annotations

import time
from pathlib import Path

from lab.errors import LabError
from lab.layout import Layout

_POLL_S = 0.2


def show_logs(layout: Layout, role: str | None, lines: int, follow: bool) -> None:
    """Print the ends of logs, with the role before each line when there are several.

    Args:
        layout: where.
        role: one role, or None for all.
        lines: how many of each.
        follow: go on printing what is appended, until interrupted.
    """
    files = sorted(layout.logs.glob("*.log")) if role is None else [layout.log(role)]
    missing = [file for file in files if not file.exists()]
    if missing or not files:
        known = ", ".join(file.stem for file in sorted(layout.logs.glob("*.log"))) or "none"
        raise LabError(f"no log of {role or 'anything'} in {layout.logs}; there are: {known}")
    offsets = {file: _show_end(file, lines, len(files) > 1) for file in files}
    while follow:
        time.sleep(_POLL_S)
        for file in files:
            offsets[file] = _show_from(file, offsets[file], len(files) > 1)


def _show_end(file: Path, lines: int, named: bool) -> int:
    data = file.read_bytes()
    for line in data.decode(errors="replace").splitlines()[-lines:]:
        _print(file, line, named)
    return len(data)


def _show_from(file: Path, offset: int, named: bool) -> int:
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read()
    # A line that is still being written is shown when it is whole.
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        _print(file, line, named)
    return offset + len(whole)


def _print(file: Path, line: str, named: bool) -> None:
    print(f"{file.stem:<16} {line}" if named else line, flush=True)
