"""Locks that another process holds are seen; mounts are read as the kernel writes them."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from virt.file_locks import LockHolder, get_file_system_type, is_locked_elsewhere
from virt.sharing import (
    is_probe_locked,
    lock_probe,
    read_answer,
    remove_answer,
    remove_probe,
    write_answer,
    write_probe,
)

LOOK = "import sys; from pathlib import Path; from virt.file_locks import is_locked_elsewhere as l;"
LOOK += "print(l(Path(sys.argv[1])))"


def is_seen_by_another_process(path: Path) -> bool:
    return subprocess.check_output([sys.executable, "-c", LOOK, path], text=True) == "True\n"


def test_a_lock_lasts_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    holder = LockHolder()
    assert not is_seen_by_another_process(path)
    assert holder.hold(path)
    assert holder.hold(path)
    assert not LockHolder().hold(path)
    assert is_seen_by_another_process(path)
    assert is_locked_elsewhere(path)
    holder.let_go(path)
    holder.let_go(path)
    assert not is_seen_by_another_process(path)
    assert not is_locked_elsewhere(tmp_path / "none")


def test_a_probe_is_locked_answered_and_removed(tmp_path: Path) -> None:
    token = uuid4()
    assert not lock_probe(tmp_path, token)
    write_probe(tmp_path, token)
    assert lock_probe(tmp_path, token)
    assert is_probe_locked(tmp_path, token)
    assert not read_answer(tmp_path, token)
    write_answer(tmp_path, token)
    assert read_answer(tmp_path, token)
    assert not read_answer(tmp_path, uuid4())
    remove_answer(tmp_path, token)
    remove_probe(tmp_path, token)
    remove_probe(tmp_path, token)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/pool/instances", "fuse.glusterfs"),
        ("/srv/pool", "fuse.glusterfs"),
        ("/srv/pools", "ext4"),
        ("/srv/a b/x", "nfs4"),
        ("/", "ext4"),
    ],
)
def test_the_nearest_mount_tells_the_type(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "2 1 8:1 /x /srv/pool rw - ext4 /dev/sda1 rw\n"
        "3 2 0:55 / /srv/pool rw - fuse.glusterfs gluster:pool rw\n"
        "4 1 0:56 / /srv/a\\040b rw master:2 - nfs4 server:/x rw\n"
    )
    assert get_file_system_type(Path(path), mounts) == kind
