"""Every workflow of this release."""

from tasks.check_migration import CHECK_MIGRATION
from tasks.delete import DELETE
from tasks.drain import DRAIN
from tasks.evacuate import EVACUATE
from tasks.evacuate_instance import EVACUATE_INSTANCE
from tasks.hydrate import HYDRATE
from tasks.live_migrate import LIVE_MIGRATE
from tasks.power_verbs import REBOOT, START, STOP
from tasks.prefetch import PREFETCH
from tasks.prewarm import PREWARM
from tasks.spawn import SPAWN
from tasks.workflow import Workflows

WORKFLOWS = Workflows(
    SPAWN,
    LIVE_MIGRATE,
    CHECK_MIGRATION,
    START,
    STOP,
    REBOOT,
    DELETE,
    HYDRATE,
    PREFETCH,
    PREWARM,
    EVACUATE,
    EVACUATE_INSTANCE,
    DRAIN,
)
