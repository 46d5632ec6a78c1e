"""Opening connections to a libvirtd that dies at the wrong moment."""

import threading
from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from innkeeper.errors import HypervisorUnavailable
from virt import connection, session
from virt.connection import open_connection
from virt.hypervisor import Hypervisor


class _GoneAfterOpen:
    """What libvirt.open returns when the daemon is killed a moment later."""

    def setKeepAlive(self, _interval_s: int, _count: int) -> int:
        return 0

    def registerCloseCallback(self, _callback: Callable[..., None], _opaque: Any) -> None:
        raise libvirt.libvirtError("Cannot write data: Broken pipe")


def test_a_daemon_that_dies_while_it_takes_us_in_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection.libvirt, "open", lambda _uri: _GoneAfterOpen())
    with pytest.raises(HypervisorUnavailable, match="Broken pipe"):
        open_connection(
            "qemu:///system",
            host="hv-a",
            keepalive_interval_s=5,
            keepalive_count=3,
            on_closed=lambda _reason: None,
        )


@pytest.mark.parametrize(
    "stumble",
    [HypervisorUnavailable("Libvirt cannot be reached."), RuntimeError("a defect")],
    ids=["expected", "unexpected"],
)
def test_connecting_is_tried_again_whatever_it_failed_of(
    monkeypatch: pytest.MonkeyPatch, stumble: Exception
) -> None:
    tries, tried_again = [], threading.Event()

    def fail(*_: object, **__: object) -> None:
        tries.append(1)
        if len(tries) > 2:
            tried_again.set()
        raise stumble

    monkeypatch.setattr(session, "open_connection", fail)
    monkeypatch.setattr(session, "RECONNECT_S", 0.01)
    hypervisor = Hypervisor("qemu:///system", name="hv-a")
    hypervisor.start()
    try:
        assert tried_again.wait(10)
    finally:
        hypervisor.close()
