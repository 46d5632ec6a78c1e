"""Server groups with racing requests and real moves."""

from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError, NoHostFits
from lab.handle import Lab
from tests.workflow.conftest import domains_on, remove

pytestmark = pytest.mark.lab

RACERS = 6


def test_racing_members_are_kept_apart_and_moves_obey(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    group = {"name": name, "policy": "anti_affinity"}
    names = [f"{name}-{number}" for number in range(RACERS)]
    try:
        sent = [client.spawn(name=each, group=group, **boot_guest) for each in names]
        placed: dict[str, str] = {}
        refused: list[InnkeeperError] = []
        for each, operation in zip(names, sent, strict=True):
            try:
                placed[each] = operation.wait(120)["host"]
            except NoHostFits as error:
                refused.append(error)
        assert sorted(placed.values()) == sorted(lab.hosts)
        assert len(refused) == RACERS - len(lab.hosts)
        assert {r["code"] for e in refused for r in e.details["refusals"]} == {"group"}
        for each, host in placed.items():
            assert domains_on(lab, host)[each] == "running"
        view = next(view for view in client.groups() if view.name == name)
        assert {member.name: member.host for member in view.members} == placed
        mover, src = next(iter(placed.items()))
        with pytest.raises(NoHostFits) as caught:
            client.migrate(mover, dst=next(h for h in lab.hosts if h != src)).wait(60)
        assert {r["code"] for r in caught.value.details["refusals"]} == {"group"}
    finally:
        for each in names:
            remove(client, each)
