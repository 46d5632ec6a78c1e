"""Whether a TCP port answers from here: the pre-check libvirt lacks.

Without it a migration towards a filtered port hangs for minutes in connect(), with a job that shows
no figures.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

Probe = Callable[[str, int, float], str | None]

_AGAIN_S = 0.2


def probe_tcp(address: str, port: int, timeout_s: float) -> str | None:
    """Try one TCP connection and close it.

    Args:
        address: host name or IP address.
        port: TCP port.
        timeout_s: seconds for all addresses of a name together, roughly.

    Returns:
        None when it was accepted, else the reason in words.
    """
    error = _connect(address, port, timeout_s)
    return None if error is None else _tell(error, address, port, timeout_s)


def probe_closed_tcp(address: str, port: int, timeout_s: float) -> str | None:
    """Try the way to a TCP port at which nobody need listen yet.

    Returns:
        None when it was accepted or refused there, else the reason in words: nothing came back.
    """
    error = _connect(address, port, timeout_s)
    if error is None or error.errno == errno.ECONNREFUSED:
        return None
    return _tell(error, address, port, timeout_s)


def probe_listener(
    address: str, port: int, timeout_s: float, *, is_there: Callable[[], bool]
) -> str | None:
    """Try the way to a TCP port at which somebody listens, unless he has gone.

    Args:
        address: host name or IP address.
        port: TCP port.
        timeout_s: seconds, also for how long it must be refused to count.
        is_there: asked after a refusal; False when the listener has gone.

    Returns:
        None when it was accepted, or nothing can be said of it; else the reason in words.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        error = _connect(address, port, timeout_s)
        if error is None:
            return None
        if error.errno != errno.ECONNREFUSED:
            return _tell(error, address, port, timeout_s)
        if not is_there():
            return None
        if time.monotonic() >= end_s:
            return (
                f"{address} port {port} refuses, though a worker listens there (a firewall "
                "rejects?)"
            )
        time.sleep(_AGAIN_S)


def _connect(address: str, port: int, timeout_s: float) -> OSError | None:
    try:
        with socket.create_connection((address, port), timeout=timeout_s):
            return None
    except OSError as error:
        return error


def _tell(error: OSError, address: str, port: int, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer from {address} port {port} within {timeout_s:g} s (a firewall drops?)"
    if isinstance(error, socket.gaierror):
        return f"the name {address} is not known here: {error.strerror}"
    return f"{address} port {port}: {error.strerror or error}"


def find_unreachable(
    address: str,
    *,
    listening: Iterable[int],
    open_later: Iterable[int] = (),
    rehearsed: Iterable[int] = (),
    is_there: Callable[[], bool] = lambda: True,
    timeout_s: float,
) -> list[str]:
    """Try several ports side by side and return what is wrong with each, in their order.

    Args:
        address: host name or IP address.
        listening: ports at which somebody must answer.
        open_later: ports that must not be filtered.
        rehearsed: ports at which somebody listens for the sake of this look.
        is_there: see ``probe_listener``.
        timeout_s: seconds for each.
    """
    tries: list[tuple[Probe, int]] = [(probe_tcp, port) for port in listening]
    tries += [(probe_closed_tcp, port) for port in open_later]
    tries += [(partial(probe_listener, is_there=is_there), port) for port in rehearsed]
    with ThreadPoolExecutor(max_workers=max(1, len(tries))) as pool:
        found = pool.map(lambda each: each[0](address, each[1], timeout_s), tries)
        return [problem for problem in found if problem is not None]
