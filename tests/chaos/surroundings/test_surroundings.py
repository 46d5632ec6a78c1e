"""A few phases × the quick faults of the surroundings; scripts/chaos --surroundings runs all."""

import pytest

from tests.chaos.stage import Stage
from tests.chaos.surroundings.cases import SurroundingsCase, find_case, run_case

pytestmark = pytest.mark.lab

CHOSEN = (
    "spawn.fetch_image:acting/redis_flushed",
    "spawn.fetch_image:acting/messages_doubled",
    "spawn.start_domain:acting/postgres_connections_terminated",
    "spawn.start_domain:acting/libvirtd_killed:src",
    "spawn.start_domain:acting/worker_frozen:src",
    "live_migrate[block].prepare_destination:acting/control_killed",
    "live_migrate[block].prepare_destination:acting/libvirtd_killed:dst",
    "live_migrate[block].migrate:acting/finish_reply_lost:src:dst",
    "live_migrate[block].migrate:inside/redis_killed_and_emptied",
    "live_migrate[shared].migrate:inside/libvirtd_killed:src",
    "live_migrate[block].settle_destination:acting/worker_frozen:dst",
    "live_migrate[shared].settle_destination:inside/postgres_connections_terminated",
    "live_migrate[shared].settle_destination:acting/messages_doubled",
)


@pytest.mark.parametrize("case", [find_case(name) for name in CHOSEN], ids=lambda case: case.id)
def test_the_surroundings_break_in_the_middle(bent_stage: Stage, case: SurroundingsCase) -> None:
    result = run_case(bent_stage, case)
    assert result.verdict == "held", "\n".join([result.why, *result.timeline])
