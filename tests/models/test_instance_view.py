"""A guest's view tells its disks, its cards and its machine, in one query for many guests."""

from sqlalchemy import event, insert

from models.disk import Disk
from models.instance import Instance
from models.queries import list_instances, show_instance
from models.session import Database
from tests.models.rows import add_host, add_instance

MIB = 1 << 20


def test_disks_cards_and_machine(database: Database) -> None:
    database.run(lambda session: add_host(session, "hv-a"))
    with database.transaction() as session:
        for name in ("vm-1", "vm-2"):
            add_instance(session, name, host="hv-a")
        guest = session.query(Instance).filter_by(name="vm-1").one()
        guest.spec = {
            **guest.spec,
            "bridge": "br0",
            "network_cards": [{"bridge": "br1", "model": "e1000", "addresses": ["10.0.0.5/24"]}],
            "hardware": {"firmware": "uefi"},
        }
        guest.guest_abi = {
            "machine": "pc-q35-7.2",
            "cpu": "Nehalem",
            "nics": [{"mac": "52:54:00:00:00:01"}, {"mac": "52:54:00:00:00:02"}],
        }
        common = {"instance_id": guest.id, "format": "raw", "size_bytes": MIB}
        session.execute(
            insert(Disk),
            [
                {**common, "target": "sda", "kind": "data", "file": "a", "bus": "scsi"},
                {**common, "target": "vda", "kind": "root", "file": "r", "bus": "virtio"},
            ],
        )
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    first, second = database.run(list_instances)
    assert len([each for each in statements if "FROM disks" in each]) == 1
    assert [(disk.target, disk.kind, disk.size_bytes) for disk in first.disks] == [
        ("vda", "root", MIB),
        ("sda", "data", MIB),
    ]
    assert [(card.bridge, card.mac, card.model) for card in first.network_cards] == [
        ("br0", "52:54:00:00:00:01", "virtio"),
        ("br1", "52:54:00:00:00:02", "e1000"),
    ]
    assert first.network_cards[1].addresses == ["10.0.0.5/24"]
    assert (first.machine, first.cpu_model, first.firmware) == ("pc-q35-7.2", "Nehalem", "uefi")
    assert (second.disks, second.network_cards, second.machine) == ([], [], None)
    assert database.run(lambda session: show_instance(session, "vm-1")) == first
