"""What the tests share: a client, guests, a stage, and names that are cleaned up."""

from collections.abc import Iterator

import pytest

from lab.handle import Lab
from tests.chaos.stage import LEASE_S, Stage, bend_stage, straighten_out
from tests.crash_directory import CrashDirectory
from tests.workflow.conftest import boot_guest, client, linux_guest, name, records

__all__ = ["boot_guest", "client", "linux_guest", "name", "records"]


@pytest.fixture(scope="module")
def bent_stage(lab: Lab, crash: CrashDirectory) -> Iterator[Stage]:
    """The tests' lab with all messages passing through the bent Redis."""
    with bend_stage(lab, crash, env={"INNKEEPER_LEASE_S": str(LEASE_S)}) as stage:
        yield stage
    # The lab is everybody's: its roles must not look for a Redis that is gone.
    straighten_out(lab)
