"""Racing claims never take more than a host has."""

import threading
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from innkeeper.errors import NoHostFits
from innkeeper.states import InstanceState
from models.host import Claim
from models.operations import insert_operation, take_instance
from models.session import Database
from tasks.choosing import choose_and_claim, demand_of
from tests.models.rows import add_host, add_instance, new_operation


def test_fifty_racing_spawns_never_over_claim(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a", memory_mib=2048)
        add_host(session, "hv-b", memory_mib=1024)
    placed: list[str] = []
    refused: list[NoHostFits] = []

    def spawn(number: int) -> None:
        def work(session: Session) -> str:
            instance_id = add_instance(
                session,
                f"vm-{number}-{uuid4().hex[:6]}",
                host=None,
                state=InstanceState.BUILDING,
                memory_mib=512,
            )
            new = new_operation("spawn")
            insert_operation(session, new, [])
            instance = take_instance(session, instance_id, new, allowed=frozenset(InstanceState))
            host, _ = choose_and_claim(
                session,
                instance=instance,
                operation_id=new.id,
                demand=demand_of(session, instance),
                wanted=None,
                ignored=frozenset(),
            )
            return host

        try:
            placed.append(database.run(work))
        except NoHostFits as exc:
            refused.append(exc)

    threads = [threading.Thread(target=spawn, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(placed) + len(refused) == 50
    with database.transaction() as session:
        rows = session.execute(select(Claim.host, func.sum(Claim.memory_mib)).group_by(Claim.host))
        sums = {row[0]: row[1] for row in rows}
    assert sums == {"hv-a": 2048, "hv-b": 1024}
    assert len(placed) == 6
    assert {r["code"] for r in refused[0].details["refusals"]} == {"memory"}
