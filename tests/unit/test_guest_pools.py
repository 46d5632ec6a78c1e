"""Which pools a guest is in, and that a directory is recognised under two of their names."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from models.disk import Disk
from models.instance import Instance
from tasks.context import Pool
from tasks.guest_pools import name_pools, pool_of
from tasks.instance_files import list_recorded
from tasks.migration_storage import find_twin

GUEST = UUID(int=7)


def guest(*named: str | None, own: str = "local") -> Instance:
    return Instance(id=GUEST, pool=own, spec={"disks": [{"pool": name} for name in named]})


def pool(path: Path, name: str) -> Pool:
    cache: Any = None
    return Pool(name, path, shared=False, trusted_coherent=False, images=cache)


@pytest.mark.parametrize(
    ("instance", "names"),
    [
        (Instance(id=GUEST, pool="local", spec={}), ("local",)),
        (guest(None, None), ("local",)),
        (guest("fast", None, "slow", "fast"), ("local", "fast", "slow")),
        (guest("local", "fast", own="fast"), ("fast", "local")),
    ],
)
def test_a_guests_own_pool_comes_first(instance: Instance, names: tuple[str, ...]) -> None:
    assert name_pools(instance) == names


def test_a_disk_that_names_no_pool_is_in_the_guests() -> None:
    assert pool_of(guest(own="fast"), Disk(pool=None)) == "fast"
    assert pool_of(guest(own="fast"), Disk(pool="slow")) == "slow"


def test_only_recorded_directories_are_this_operations(tmp_path: Path) -> None:
    a, b = pool(tmp_path / "a", "a"), pool(tmp_path / "b", "b")
    made = str(b.instance_dir(GUEST))
    assert list_recorded((a, b), GUEST, {"directories": [made]}) == [b]
    assert list_recorded((a, b), GUEST, {"directory": made}) == [b]
    assert list_recorded((a, b), GUEST, {"directories": [str(tmp_path / "b")]}) == []
    assert list_recorded((a, b), GUEST, {}) == []


def test_one_directory_under_two_names_is_found(tmp_path: Path) -> None:
    a, b = pool(tmp_path / "a", "a"), pool(tmp_path / "b", "b")
    alias = pool(tmp_path / "alias", "alias")
    for each in (a, b):
        each.instance_dir(GUEST).mkdir(parents=True)
    assert [find_twin(each, (a, b), GUEST) for each in (a, b)] == [None, None]
    alias.path.symlink_to(b.path)
    pools = (a, b, alias)
    assert [find_twin(each, pools, GUEST) for each in pools] == [None, "alias", "b"]
