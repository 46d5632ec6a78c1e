"""In which storage pools a guest is: its own, and those that single disks of it name.

The guest's own pool has the root disk, the config drive, the firmware's variables and the images
under them; another pool has nothing but the disks that name it. In each the guest has a directory.
"""

from models.disk import Disk
from models.instance import Instance
from tasks.context import HostServices, Pool, StepContext, get_pool


def name_pools(instance: Instance) -> tuple[str, ...]:
    """Return the names of a guest's pools, its own first; its record alone tells them."""
    named = (disk.get("pool") for disk in instance.spec.get("disks") or ())
    return tuple(dict.fromkeys((instance.pool, *(name for name in named if name))))


def pool_of(instance: Instance, disk: Disk) -> str:
    """Return the name of the pool that a disk is in; an earlier release had one for all."""
    return disk.pool or instance.pool


def get_pools(services: HostServices, instance: Instance) -> tuple[Pool, ...]:
    """Get a guest's pools on a host, its own first.

    Raises:
        HostUnsuitable: the host has none of such a name.
    """
    return tuple(get_pool(services, name) for name in name_pools(instance))


def get_guest_pools(context: StepContext) -> tuple[Pool, ...]:
    """Get the pools of a step's guest on its host; see ``get_pools``."""
    return get_pools(context.host, context.instance)
