"""The guest's boot: watched until it is as far as was asked for."""

from collections.abc import Mapping
from typing import Any

from innkeeper.states import BootStage
from innkeeper.types import InstanceSpec
from tasks.context import StepContext
from tasks.workflow import Done
from virt.boot import wait_for_boot


def is_watched(spec: Mapping[str, Any]) -> bool:
    """Tell whether a boot is watched: that a guest runs, libvirt's start has said already."""
    return BootStage(spec.get("wait", BootStage.RUNNING)) is not BootStage.RUNNING


def wait_boot(context: StepContext) -> Done:
    """Wait until the guest has reached the stage that was asked for.

    Queue: host.<dst>; as long as the guest takes to boot.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again; the ladder is climbed from what is there.
    Retries: none; a guest that dies fails at once, a late one at boot_timeout_s.
    """
    spec = InstanceSpec.model_validate(context.instance.spec)
    wanted = BootStage(spec.wait)

    def show(stage: BootStage) -> None:
        # The last one is told by the step's end.
        if stage is not wanted:
            context.progress(stage.rung / wanted.rung, f"guest is at {stage}")

    context.midway()
    reached = wait_for_boot(
        context.host.hypervisor,
        context.instance.id,
        wanted=wanted,
        timeout_s=spec.boot_timeout_s,
        console_path=context.host.console_path(context.instance.id),
        on_stage=show,
        check=context.checkpoint,
    )
    return Done({"boot_stage": reached.value})
