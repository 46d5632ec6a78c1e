"""A control worker beside the lab's own, which carries on when that one dies."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from lab import environment
from lab.layout import REPOSITORY
from tests.chaos.patience import comes_true
from tests.chaos.stage import Stage

READY_S = 30.0
NAME = "second"


class SecondControl:
    """Starts and ends ``python -m workers control --name second``.

    Args:
        stage: whose Postgres and Redis it shares.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def ensure_running(self) -> None:
        """Start it unless it runs, and wait until it consumes.

        Raises:
            TimeoutError: it was not ready in time.
        """
        if self.is_running:
            return
        layout = self._stage.lab.layout
        env = environment.for_process(self._stage.lab.description, layout, NAME) | self._stage.env
        ready = Path(env["INNKEEPER_READY_FILE"])
        ready.unlink(missing_ok=True)
        # Outside the lab's namespaces, /run is the machine's own, and other labs' too.
        env["INNKEEPER_LOCK_DIR"] = str(layout.root / "run" / NAME / "locks")
        with layout.log(f"control-{NAME}").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    # It must not outlive whoever started it, however that ends.
                    *("setpriv", "--pdeathsig", "KILL"),
                    *(sys.executable, "-m", "workers", "control", "--name", NAME),
                ],
                cwd=REPOSITORY,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        comes_true(lambda: ready.exists() or not self.is_running, READY_S, every_s=0.01)
        if not ready.exists():
            raise TimeoutError(f"the {NAME} control worker is not ready; see {layout.logs}")

    def end(self) -> None:
        """Kill it if it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, 9)
            self._process.wait()
