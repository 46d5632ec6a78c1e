"""Whether a TCP port answers from here: the pre-check libvirt lacks.

Without it a migration towards a filtered port hangs for minutes in connect(), with a job that shows
no figures.
"""

import errno
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor


def probe_tcp(address: str, port: int, timeout_s: float) -> str | None:
    """Try one TCP connection and close it.

    Args:
        address: host name or IP address.
        port: TCP port.
        timeout_s: seconds for all addresses of a name together, roughly.

    Returns:
        None when it was accepted, else the reason in words.
    """
    return _try(address, port, timeout_s, may_be_closed=False)


def _try(address: str, port: int, timeout_s: float, *, may_be_closed: bool) -> str | None:
    try:
        with socket.create_connection((address, port), timeout=timeout_s):
            return None
    except TimeoutError:
        return f"no answer from {address} port {port} within {timeout_s:g} s (filtered?)"
    except socket.gaierror as error:
        return f"the name {address} is not known here: {error.strerror}"
    except OSError as error:
        if may_be_closed and error.errno == errno.ECONNREFUSED:
            return None
        return f"{address} port {port}: {error.strerror or error}"


def probe_closed_tcp(address: str, port: int, timeout_s: float) -> str | None:
    """Try the way to a TCP port at which nobody need listen yet.

    Returns:
        None when it was accepted or refused there, else the reason in words: nothing came back.
    """
    return _try(address, port, timeout_s, may_be_closed=True)


def find_unreachable(
    address: str, *, listening: Iterable[int], open_later: Iterable[int], timeout_s: float
) -> list[str]:
    """Try several ports side by side and return what is wrong with each, in their order.

    Args:
        address: host name or IP address.
        listening: ports at which somebody must answer.
        open_later: ports that must not be filtered.
        timeout_s: seconds for each.
    """
    tries = [(probe_tcp, port) for port in listening]
    tries += [(probe_closed_tcp, port) for port in open_later]
    with ThreadPoolExecutor(max_workers=max(1, len(tries))) as pool:
        found = pool.map(lambda each: each[0](address, each[1], timeout_s), tries)
        return [problem for problem in found if problem is not None]
