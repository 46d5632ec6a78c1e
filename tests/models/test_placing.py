"""What a request claims, and that one that cannot be placed leaves nothing."""

from uuid import uuid4

import pytest
from sqlalchemy import text

from innkeeper.errors import Conflict, NoHostFits
from models.claims import list_host_snapshots
from models.disks import replace_disks, replace_drive
from models.image import CachedImage, Image
from models.instance import Instance
from models.session import Database
from tasks.choosing import demand_of
from tasks.disk_plan import GIB
from tests.models.asking import ask_spawn, count_rows, places
from tests.models.rows import add_host, add_instance


def claims(database: Database) -> list[tuple[str, str, int]]:
    with database.transaction() as session:
        rows = session.execute(text("SELECT host, pool, disk_gib FROM claims ORDER BY id"))
        return [(row.host, row.pool, row.disk_gib) for row in rows]


def test_all_disks_are_claimed_in_their_pool(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a", pools_gib={"local": 10, "fast": 4})
    disks = [{"size_mib": 1024}, {"size_mib": 100, "kind": "swap"}]
    ask_spawn(database, "vm-0", disk_gib=2, disks=disks, pool="fast")
    assert claims(database) == [("hv-a", "fast", 4)]
    with pytest.raises(NoHostFits, match="0 GiB of disk free in pool 'fast'"):
        ask_spawn(database, "vm-1", disk_gib=1, pool="fast")
    ask_spawn(database, "vm-1", disk_gib=10, pool="local")
    assert claims(database)[1:] == [("hv-a", "local", 10)]


def test_a_disk_is_claimed_in_the_pool_that_it_names(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a", pools_gib={"local": 10, "fast": 4})
        add_host(session, "hv-b", pools_gib={"local": 100})
    disks = [{"size_mib": 1024, "pool": "fast"}, {"size_mib": 100, "kind": "swap"}]
    ask_spawn(database, "vm-0", disk_gib=2, disks=disks)
    with database.transaction() as session:
        (row,) = session.execute(text("SELECT host, pool, disk_gib, elsewhere_gib FROM claims"))
        assert tuple(row) == ("hv-a", "local", 3, {"fast": 1})
        seen = {host.name: host for host in list_host_snapshots(session)}
        assert session.scalar(text("SELECT disk_gib FROM instances")) == 4
    assert seen["hv-a"].disk_claimed_gib_by_pool == {"local": 3, "fast": 1}
    assert (seen["hv-a"].disk_claimed_gib, seen["hv-a"].instances) == (4, 1)
    assert seen["hv-b"].disk_claimed_gib_by_pool == {}
    with pytest.raises(NoHostFits) as caught:
        ask_spawn(database, "vm-1", disks=[{"size_mib": 4 * 1024, "pool": "fast"}])
    assert [(each["host"], each["code"]) for each in caught.value.details["refusals"]] == [
        ("hv-a", "disk"),
        ("hv-b", "no_pool"),
    ]
    assert "3 GiB of disk free in pool 'fast'" in caught.value.message


def test_a_disk_of_the_images_size_is_claimed_by_it_once_it_is_known(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
        session.add(
            Image(
                sha256="a" * 64,
                format="qcow2",
                size_bytes=1,
                source="x",
                virtual_size_bytes=2 * 1024**3 + 1,
            )
        )
    ask_spawn(database, "vm-0", disk_gib=0, sha256="a" * 64)
    assert claims(database) == [("hv-a", "local", 3)]


def test_pools_on_one_file_system_are_claimed_from_one_room(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a", pools_gib={"local": 10, "fast": 10}, file_system="2049")
    disks = [{"size_mib": 6 * 1024, "pool": "fast"}]
    with pytest.raises(NoHostFits, match="pools 'local' and 'fast', which share a file system"):
        ask_spawn(database, "vm-0", disk_gib=5, disks=disks)
    ask_spawn(database, "vm-0", disk_gib=4, disks=disks)
    with pytest.raises(NoHostFits, match="0 GiB of disk free in pool 'local'"):
        ask_spawn(database, "vm-1", disk_gib=1)


def test_a_guest_that_is_placed_again_asks_for_what_its_disks_take(database: Database) -> None:
    """Not for its config drive: that is a part of a MiB, and was not claimed at first either."""
    with database.transaction() as session:
        add_host(session, "hv-a")
        instance_id = add_instance(session, "vm", host="hv-a")
        disk = {"kind": "data", "format": "raw", "bus": "virtio", "facts": {}}
        made = [("vda", None, 1), ("vdb", "local", GIB), ("vdc", "fast", GIB)]
        rows = [
            {**disk, "target": target, "file": target, "pool": pool, "size_bytes": size_bytes}
            for target, pool, size_bytes in made
        ]
        replace_disks(session, instance_id, rows)
        drive = {**disk, "target": "sda", "file": "config.iso", "size_bytes": 400_000}
        del drive["kind"]
        replace_drive(session, instance_id, drive)
        session.flush()
        demand = demand_of(session, session.get_one(Instance, instance_id))
    assert demand.disk_gib == {"local": 2, "fast": 1}
    with database.transaction() as session:
        replace_disks(session, instance_id, [{**rows[1], "kind": "root"}])
        demand = demand_of(session, session.get_one(Instance, instance_id))
    assert demand.disk_gib == {"local": 1}


def test_a_host_that_has_the_image_is_preferred(database: Database) -> None:
    with database.transaction() as session:
        for name in ("hv-a", "hv-b", "hv-c"):
            add_host(session, name)
        session.add(
            Image(
                sha256="a" * 64,
                sha512="b" * 128,
                format="qcow2",
                size_bytes=1,
                source="x",
                virtual_size_bytes=1,
            )
        )
        session.flush()
        for host, state in (("hv-b", "rotten"), ("hv-c", "ready")):
            session.add(
                CachedImage(host=host, pool="local", sha256="a" * 64, path="/x", state=state)
            )
    ask_spawn(database, "by-256", sha256="a" * 64)
    ask_spawn(database, "by-512", sha512="b" * 128)
    ask_spawn(database, "unknown")
    assert places(database) == {"by-256": "hv-c", "by-512": "hv-c", "unknown": "hv-a"}


def test_what_cannot_be_placed_leaves_no_row(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a", memory_mib=512)
    before = count_rows(database)
    with pytest.raises(NoHostFits) as caught:
        ask_spawn(
            database,
            "vm-0",
            memory_mib=1024,
            vcpus=65,
            pool="none",
            group={"name": "new", "policy": "affinity"},
        )
    codes = [each["code"] for each in caught.value.details["refusals"]]
    assert codes == ["no_pool", "cpu", "memory"]
    assert count_rows(database) == before


def test_an_insisted_host_claims_like_any_other(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a", memory_mib=512)
        add_host(session, "hv-b")
    ask_spawn(database, "vm-0", memory_mib=512, host="hv-a")
    with pytest.raises(NoHostFits, match="Host hv-a, which was asked for") as caught:
        ask_spawn(database, "vm-1", memory_mib=512, host="hv-a")
    assert [(r["host"], r["code"]) for r in caught.value.details["refusals"]] == [
        ("hv-a", "memory")
    ]


def test_a_key_sent_twice_claims_once(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
    key = uuid4().hex
    assert ask_spawn(database, "vm-0", key=key) == ask_spawn(database, "vm-0", key=key)
    assert len(claims(database)) == 1
    with pytest.raises(Conflict):
        ask_spawn(database, "vm-1", key=key)
