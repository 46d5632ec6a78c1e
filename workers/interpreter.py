"""How Python itself is set in a worker: for many short waits in few threads."""

import gc
import sys

# A thread that comes back from Postgres or libvirt waits at most so long for the one that computes.
SWITCH_INTERVAL_S = 0.0005
# What a step allocates is mostly freed by counting; cycles may wait longer.
GC_THRESHOLDS = (20_000, 20, 20)


def tune_interpreter() -> None:
    """Set the interpreter of a worker that has loaded all it needs; safe to call again."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What was imported lives as long as the process: no collection has to look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
