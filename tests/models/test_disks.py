"""Rows of disks, and what a claim learns of an image's size, on a real Postgres."""

from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models.claims import insert_claim, list_host_snapshots
from models.disk_claims import fit_disk_claim
from models.disks import forget_disks, list_disks, replace_disks
from models.host import Claim
from models.image import Image
from models.instance import Instance
from models.known_image import KnownImage, find_known_image
from models.session import Database
from tests.models.rows import add_host, add_instance, add_operation

A = "a" * 64


def row(target: str, **changes: object) -> dict[str, object]:
    return {
        "target": target,
        "kind": "data",
        "file": f"{target}.raw",
        "format": "raw",
        "bus": "virtio",
        "size_bytes": 1,
        "facts": {},
        **changes,
    }


def add_claimed(session: Session, *, disk_gib: int) -> UUID:
    instance_id = add_instance(session, "vm", host="hv")
    operation_id = add_operation(session, instance_id, host="hv")
    insert_claim(
        session,
        host="hv",
        instance_id=instance_id,
        operation_id=operation_id,
        pool="local",
        sizes={"vcpus": 1, "memory_mib": 1, "disk_gib": disk_gib},
    )
    session.flush()
    return instance_id


@pytest.mark.parametrize(
    ("claimed_gib", "disk_gib", "too_full", "claims_gib"),
    [
        (0, 0, None, 0),
        (0, 7, None, 7),
        (8, 10, None, 10),
        (8, 11, (("local",), 10.0), 8),
        (5, 3, None, 3),
    ],
)
def test_a_claim_grows_where_there_is_room(
    database: Database,
    claimed_gib: int,
    disk_gib: int,
    too_full: tuple[tuple[str, ...], float] | None,
    claims_gib: int,
) -> None:
    with database.transaction() as session:
        add_host(session, "hv", pools_gib={"local": 10, "other": 1000})
        instance_id = add_claimed(session, disk_gib=claimed_gib)
    for _ in range(2):
        found = database.run(
            lambda session: fit_disk_claim(
                session, host="hv", instance_id=instance_id, disk_gib={"local": disk_gib}
            )
        )
        # Asked again after a crash it says the same: what did not fit is not claimed by asking.
        assert found == too_full
    with database.transaction() as session:
        claim = session.scalars(select(Claim).where(Claim.instance_id == instance_id)).one()
        assert claim.disk_gib == claims_gib
        if disk_gib != claimed_gib:
            assert session.get_one(Instance, instance_id).disk_gib == disk_gib


def test_a_claim_grows_in_each_of_its_pools_or_in_none(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv", pools_gib={"local": 10, "other": 5})
        instance_id = add_claimed(session, disk_gib=1)

    def fit(**disk_gib: int) -> tuple[tuple[str, ...], float] | None:
        return database.run(
            lambda session: fit_disk_claim(
                session, host="hv", instance_id=instance_id, disk_gib=disk_gib
            )
        )

    def claimed() -> dict[str, int]:
        with database.transaction() as session:
            (host,) = list_host_snapshots(session)
            assert host.disk_claimed_gib == sum(host.disk_claimed_gib_by_pool.values())
            return host.disk_claimed_gib_by_pool

    assert fit(local=2, other=5) is None
    assert claimed() == {"local": 2, "other": 5}
    assert fit(local=3, other=6) == (("other",), 5.0)
    assert claimed() == {"local": 2, "other": 5}
    assert fit(local=3, other=4) is None
    assert claimed() == {"local": 3, "other": 4}


def test_a_claim_grows_by_what_pools_on_one_file_system_have_together(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv", pools_gib={"local": 10, "other": 10}, file_system="2049")
        instance_id = add_claimed(session, disk_gib=1)

    def fit(**disk_gib: int) -> tuple[tuple[str, ...], float] | None:
        return database.run(
            lambda session: fit_disk_claim(
                session, host="hv", instance_id=instance_id, disk_gib=disk_gib
            )
        )

    assert fit(local=6, other=5) == (("local", "other"), 10.0)
    assert fit(local=6, other=4) is None
    assert fit(local=4, other=6) is None
    assert fit(local=11, other=6) == (("local", "other"), 10.0)


def find(session: Session, *, sha256: str | None = None) -> KnownImage:
    return find_known_image(session, sha256=sha256, sha512=None, pool="local")


def test_the_size_of_an_image_is_known_once_a_host_has_seen_it(database: Database) -> None:
    with database.transaction() as session:
        assert find(session) == find(session, sha256=A) == KnownImage()
        session.add(Image(sha256=A, format="raw", size_bytes=1, virtual_size_bytes=77, source="/i"))
        session.flush()
        assert find(session, sha256=A) == KnownImage(77)


def test_disks_are_replaced_and_forgotten_but_for_a_config_drive(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv")
        instance_id = add_instance(session, "vm", host="hv")
        replace_disks(session, instance_id, [row("vdb"), row("vdz", kind="root")])
        replace_disks(session, instance_id, [row("vda"), row("vdc", kind="root")])
        drive = row("hdd", kind="config_drive", file="config.iso", bus="ide")
        session.execute(
            # Of another step, which these functions leave alone.
            Instance.metadata.tables["disks"].insert().values(instance_id=instance_id, **drive)
        )
        replace_disks(session, instance_id, [row("vdb"), row("vdd", kind="root")])
        assert [disk.target for disk in list_disks(session, instance_id)] == ["vdd", "vdb"]
        forget_disks(session, instance_id)
        assert list_disks(session, instance_id) == []


def test_a_file_is_a_name_and_nothing_else(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv")
        instance_id = add_instance(session, "vm", host="hv")
    with pytest.raises(IntegrityError, match="file_is_a_name"), database.transaction() as session:
        replace_disks(session, instance_id, [row("vda", file="../../etc/passwd")])
