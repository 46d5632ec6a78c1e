"""The lab's GlusterFS is shared storage in earnest, and a lab's own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from lab.handle import Lab
from lab.layout import GLUSTER_MOUNT
from tests.lab.test_lab_itself import Traces, supervisor_pid
from tests.waiting import wait_until

PROBE = f"{GLUSTER_MOUNT}/probe"
HOLD_LOCK = (
    "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB);"
    " print('held', flush=True); sys.stdin.read()"
)


def write(lab: Lab, host: str, text: str) -> None:
    lab.exec(host, ["sh", "-c", f'printf %s "$0" > {PROBE}', text])


def read(lab: Lab, host: str) -> str:
    return lab.exec(host, ["cat", PROBE]).stdout


def test_it_is_shared_within_a_lab_alone_and_leaves_nothing_after_a_crash() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="lab-", dir="/var/tmp") as first,
        tempfile.TemporaryDirectory(prefix="lab-", dir="/var/tmp") as second,
    ):
        lab = Lab.up(Path(first), hosts=2, workers=False, gluster=True, owner_pid=os.getpid())
        traces = Traces(lab)
        write(lab, "hv-a", "of the first lab")
        assert read(lab, "hv-b") == "of the first lab"

        holder = subprocess.Popen(
            lab.host_command("hv-a", ["python3", "-c", HOLD_LOCK, PROBE]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused = lab.exec("hv-b", ["python3", "-c", HOLD_LOCK, PROBE], check=False)
        assert "Resource temporarily unavailable" in refused.stderr
        holder.communicate(b"")

        with Lab.up(
            Path(second), hosts=1, workers=False, gluster=True, owner_pid=os.getpid()
        ) as other:
            write(other, "hv-a", "of the second")
            assert read(lab, "hv-b") == "of the first lab"
        lab.kill("gluster:hv-a")
        lab.start("gluster:hv-a")
        assert read(lab, "hv-a") == "of the first lab"
        os.kill(supervisor_pid(lab), signal.SIGKILL)
        wait_until(lambda: not traces.left(), what=f"clean machine: {traces.left()}")
        lab.down()
