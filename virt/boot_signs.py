"""What a booting guest's output and resets mean. Pure.

The console comes from inside the guest: a line of it is a hint, and it is anchored, so that a word
in the middle of other output means nothing.
"""

import re
from collections.abc import Iterable, Sequence

from virt.console import clean

RESTARTS_ALLOWED = 3
RESTART_WINDOW_S = 120.0
RESETS_PER_RESTART = 3
RESTART_TAKES_S = 1.0

_SIGN_MAX_CHARS = 300

# The kernel's time stamp, its CPU or task, and systemd's name of a service, where there are such.
_PREFIX = r"^\s*(?:\[\s*\d+\.\d+\]\s*(?:\[\s*[TC]\d+\]\s*)?)?(?:cloud-init\[\d+\]:\s*)?"
_FINAL = re.compile(_PREFIX + r"Cloud-init v\. \S.* finished at .*\bUp \d+(?:\.\d+)? seconds\b")
_PANIC = re.compile(_PREFIX + r"(Kernel panic - not syncing\b.*)")
_LAST_WORDS = re.compile(_PREFIX + r"(?:---\[ end Kernel panic|Rebooting in \d+ seconds)")
_NEW_BOOT = re.compile(rb"Linux version \d|SeaBIOS|iPXE")


class ConsoleSigns:
    """What a console has said so far.

    Attributes:
        panic: the kernel's last sentence, while nothing shows that life goes on after it.
        is_finished: True once cloud-init has said that it is finished.
    """

    def __init__(self) -> None:
        self.panic: str | None = None
        self.is_finished = False
        self._is_panic_over = False

    def read(self, lines: Iterable[bytes]) -> None:
        """Take the next lines, uncleaned; one that comes again, only longer, does no harm."""
        for line in lines:
            # Cleaning is the dear part, and hardly a line is of interest.
            if b"Cloud-init v." in line and _FINAL.match(clean(line)):
                self.is_finished = True
            elif b"Kernel panic" in line or b"Rebooting in" in line:
                self._read_panic(clean(line))
            elif self._is_panic_over or _NEW_BOOT.search(line):
                self.forget_panic()

    def forget_panic(self) -> None:
        """Take note that the guest lives."""
        self.panic, self._is_panic_over = None, False

    def _read_panic(self, text: str) -> None:
        if found := _PANIC.match(text):
            self.panic, self._is_panic_over = found[1][:_SIGN_MAX_CHARS], False
        elif self.panic is not None and _LAST_WORDS.match(text):
            self._is_panic_over = True


def is_boot_loop(resets_s: Sequence[float]) -> bool:
    """Return whether a guest resets too often to be taken for one that boots.

    A first boot may well restart once or twice by itself: after growing its disk, or when its
    firmware has arranged itself. One restart is up to three resets, because SeaBIOS resets the
    machine again until it finds it as new.

    Args:
        resets_s: when it was reset, in seconds on one clock, the oldest first.
    """
    recent_s = [at_s for at_s in resets_s if resets_s[-1] - at_s <= RESTART_WINDOW_S]
    if len(recent_s) > RESTARTS_ALLOWED * RESETS_PER_RESTART:
        return True
    restarts, began_s = 0, float("-inf")
    for at_s in recent_s:
        if at_s - began_s > RESTART_TAKES_S:
            restarts, began_s = restarts + 1, at_s
    return restarts > RESTARTS_ALLOWED
