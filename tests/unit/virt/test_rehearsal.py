"""A way to a port tried against a real listener, and against none."""

import socket

from tests.waiting import wait_until
from virt.reach import find_unreachable, probe_closed_tcp, probe_listener, probe_tcp
from virt.rehearsal import Rehearsal

HERE = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def test_it_listens_for_a_while_and_lets_the_port_go() -> None:
    rehearsal = Rehearsal()
    ports = free_ports(2)
    assert rehearsal.listen(ports, for_s=0.1) == ports[0]
    # Whoever comes later has the same listener, for as long as he needs it.
    assert rehearsal.listen(ports[1:], for_s=0.6) == ports[0]
    for _ in range(3):
        assert probe_tcp(HERE, ports[0], 1) is None
    wait_until(lambda: probe_tcp(HERE, ports[0], 1) is not None, what="it ends")
    assert "refused" in str(probe_tcp(HERE, ports[0], 1))
    assert rehearsal.listen(ports, for_s=0.1) == ports[0]


def test_it_takes_a_port_that_is_free_and_an_address_that_qemu_has() -> None:
    taken, free = free_ports(2)
    with socket.create_server(("", taken)):
        assert Rehearsal().listen([taken], for_s=1) is None
        assert Rehearsal(HERE).listen([taken, free], for_s=1) == free
    assert probe_tcp(HERE, free, 1) is None
    assert "refused" in str(probe_tcp("127.0.0.2", free, 1))


def test_a_refusal_counts_while_somebody_must_be_listening() -> None:
    (port,) = free_ports(1)
    assert probe_closed_tcp(HERE, port, 0.3) is None
    assert probe_listener(HERE, port, 0.3, is_there=lambda: False) is None
    refused = probe_listener(HERE, port, 0.3, is_there=lambda: True)
    assert refused is not None
    assert "a firewall rejects?" in refused
    looks = iter([True, False])
    assert probe_listener(HERE, port, 60, is_there=lambda: next(looks)) is None
    with socket.create_server((HERE, port)):
        assert probe_listener(HERE, port, 0.3, is_there=lambda: True) is None
    found = find_unreachable(HERE, listening=(), rehearsed=(port,), timeout_s=0.1)
    assert found == [refused]
