"""The host's worker keeps a guest's console within its share of the disk."""

from typing import Any

import pytest

from innkeeper import Innkeeper
from lab.handle import Lab
from tests.waiting import wait_until

pytestmark = pytest.mark.lab


def test_a_grown_console_is_cut_to_the_guests_share(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    hardware = {"console_log_mib": 1}
    result = client.spawn(name=name, hardware=hardware, wait="console", **boot_guest).wait(120)
    console = f"/var/lib/innkeeper/consoles/{result['id']}.log"
    # A boot sector says little; the rest of the flood comes from beside it.
    fill = f"yes 'one line of a flood' | head -c 4194304 >> {console}"
    lab.exec(result["host"], ["sh", "-c", fill])

    def size_kib(*options: str) -> int:
        done = lab.exec(result["host"], ["du", "-k", *options, console])
        return int(done.stdout.split()[0])

    wait_until(lambda: size_kib() <= 1024, what="the console was cut")
    assert size_kib("--apparent-size") >= 4096
    last = lab.exec(result["host"], ["tail", "-c", "4096", console]).stdout
    assert "one line of a flood" in last or "hb " in last
