"""Whether a TCP port answers from here: the pre-check libvirt lacks.

Without it a migration towards a filtered port hangs for minutes in connect(), with a job that shows
no figures.
"""

import socket


def probe_tcp(address: str, port: int, timeout_s: float) -> str | None:
    """Try one TCP connection and close it.

    Args:
        address: host name or IP address.
        port: TCP port.
        timeout_s: seconds for all addresses of a name together, roughly.

    Returns:
        None when it was accepted, else the reason in words.
    """
    try:
        with socket.create_connection((address, port), timeout=timeout_s):
            return None
    except TimeoutError:
        return f"no answer from {address} port {port} within {timeout_s:g} s (filtered?)"
    except socket.gaierror as error:
        return f"the name {address} is not known here: {error.strerror}"
    except OSError as error:
        return f"{address} port {port}: {error.strerror or error}"
