"""Files that go into a new guest through its agent, once that answers."""

from innkeeper.types import InstanceSpec
from tasks.context import StepContext
from tasks.guest_data import open_guest_data
from tasks.workflow import Done
from virt.agent_files import AgentFiles

INJECT_LIMIT_S = 120.0


def inject_files(context: StepContext) -> Done:
    """Write files into the guest through its agent.

    Queue: host.<dst>; about a tenth of a second a file; only for guests that want some.
    Idempotency: writes again; each file is replaced by one rename in the guest.
    Undo: none of its own; with the guest its disks go.
    On crash: begun again.
    Retries: none; a guest that cannot be given its files fails its spawn.
    """
    spec = InstanceSpec.model_validate(context.instance.spec)
    files = open_guest_data(context.keyring, spec.data).agent_files
    agent = AgentFiles(
        context.host.hypervisor,
        context.instance.id,
        limit_s=INJECT_LIMIT_S,
        check=context.checkpoint,
    )
    for number, file in enumerate(files):
        if number == len(files) // 2:
            context.midway()
        context.progress(number / len(files), f"writing file {number + 1} of {len(files)}")
        agent.write(file)
    return Done({"files": len(files)})
