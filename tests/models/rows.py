"""Rows that the tests of the models start from."""

from uuid import UUID, uuid4

from sqlalchemy import func
from sqlalchemy.orm import Session

from innkeeper.states import InstanceState
from models.host import Host
from models.instance import Instance
from models.operations import NewOperation, PlannedStep, insert_operation, take_instance


def add_host(
    session: Session,
    name: str,
    *,
    memory_mib: int = 4096,
    pools_gib: dict[str, int] | None = None,
    file_system: str | None = None,
) -> None:
    """Add a host; all its pools are on the file system, or each on one that is not told."""
    told = {} if file_system is None else {"file_system": file_system}
    session.add(
        Host(
            name=name,
            uuid=uuid4(),
            vcpus_total=64,
            memory_total_mib=memory_mib,
            disk_total_gib=100,
            pools={
                pool: {"total_gib": gib, **told}
                for pool, gib in (pools_gib or {"local": 100}).items()
            },
            heartbeat_at=func.clock_timestamp(),
        )
    )
    session.flush()


def add_instance(
    session: Session,
    name: str,
    *,
    host: str | None,
    state: InstanceState = InstanceState.ACTIVE,
    memory_mib: int = 256,
) -> UUID:
    instance = Instance(
        id=uuid4(),
        name=name,
        spec={"name": name, "image": "/images/vm.qcow2", "power_policy": "stop"},
        host=host,
        state=state,
        pool="local",
        vcpus=1,
        memory_mib=memory_mib,
        disk_gib=1,
    )
    session.add(instance)
    session.flush()
    return instance.id


def new_operation(kind: str = "stop", *, deadline_s: float = 60) -> NewOperation:
    return NewOperation(id=uuid4(), kind=kind, params={}, request_digest="x", deadline_s=deadline_s)


def add_operation(
    session: Session,
    instance_id: UUID,
    *,
    steps: tuple[str, ...] = ("one", "two", "three"),
    host: str | None = None,
    deadline_s: float = 60,
) -> UUID:
    new = new_operation(deadline_s=deadline_s)
    insert_operation(session, new, [PlannedStep(name, host) for name in steps])
    take_instance(session, instance_id, new, allowed=frozenset(InstanceState))
    return new.id
