"""What is to be done about a guest that still reads from its image's source. Pure."""

from dataclasses import dataclass
from enum import StrEnum, auto


class Act(StrEnum):
    """What the host does next for such a guest.

    hydrate covers giving the guest up: the operation looks again before it decides.
    """

    WAIT = auto()
    FETCH = auto()
    HYDRATE = auto()
    RESUME = auto()


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is known of such a guest.

    Args:
        is_held: whether an operation has it.
        is_cached: whether the verified image is in the host's cache.
        is_fetching: whether an operation is bringing it.
        is_condemned: whether the source's bytes were found to be others than promised.
        waits_for_disk: whether QEMU holds the guest because the source does not deliver.
        gives_up: whether the guest is to be given up then.
        is_fresh: whether it is to have the source for itself yet.
    """

    is_held: bool
    is_cached: bool
    is_fetching: bool
    is_condemned: bool
    waits_for_disk: bool
    gives_up: bool
    is_fresh: bool


def decide(look: Look) -> Act:
    """Return what to do next."""
    if look.is_held:
        return Act.WAIT
    if look.is_condemned:
        return Act.HYDRATE
    if look.is_cached:
        return Act.WAIT if look.is_fresh and not look.waits_for_disk else Act.HYDRATE
    if look.waits_for_disk:
        return Act.HYDRATE if look.gives_up else Act.RESUME
    if look.is_fetching or look.is_fresh:
        return Act.WAIT
    return Act.FETCH
