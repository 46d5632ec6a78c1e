"""Workers that start before Postgres does wait for it, and then take over as always."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from innkeeper import Innkeeper
from lab.handle import Lab
from models.session import Database

pytestmark = pytest.mark.lab

LONGER_THAN_A_TRANSACTION_IS_TRIED_S = 22


def test_workers_start_before_postgres(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], records: Database
) -> None:
    host = lab.hosts[0]
    late = [f"worker:{host}", "control"]
    for role in (*late, "postgres"):
        lab.kill(role)
    with ThreadPoolExecutor() as pool:
        starting = [pool.submit(lab.start, role) for role in late]
        time.sleep(LONGER_THAN_A_TRANSACTION_IS_TRIED_S)
        assert not any(start.done() for start in starting)
        lab.start("postgres")
        # The tests' own connections have died with it.
        records.dispose()
        for start in starting:
            assert start.result()["running"]
    assert client.spawn(name=name, host=host, **boot_guest).wait(60)["host"] == host
