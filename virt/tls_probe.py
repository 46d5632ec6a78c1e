"""Whether another host's libvirtd takes this host's certificate, and this host the other's.

The handshake is the only judge that counts: a daemon keeps the certificates it was started with,
whatever the files say by now.
"""

import socket
import ssl

from virt.tls_certificates import Identity

# What libvirt's server says when it has verified the client's certificate.
_WELCOME = b"\x01"


def probe_libvirt_tls(identity: Identity, address: str, port: int, timeout_s: float) -> str | None:
    """Shake hands with another host's libvirtd as the libvirtd of this host would, and hang up.

    Args:
        identity: this host's libvirt as client.
        address: host name or IP address, which the other's certificate must name.
        port: TCP port.
        timeout_s: seconds for each part of it.

    Returns:
        None when both sides were content, else the reason in words. Also None when this process
        may not read the key, or the port does not answer, which is another check's to tell.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(identity.authority)
        context.load_cert_chain(identity.certificate, identity.key)
        plain = socket.create_connection((address, port), timeout=timeout_s)
    except OSError:
        return None
    try:
        with plain, context.wrap_socket(plain, server_hostname=address) as secured:
            if secured.recv(1) == _WELCOME:
                return None
        return "libvirtd there does not accept this host's certificate"
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of libvirtd there is refused here: {error.verify_message}"
    except ssl.SSLError as error:
        return f"the TLS handshake failed: {error.reason or error}"
    except TimeoutError:
        return f"libvirtd there does not end the TLS handshake within {timeout_s:g} s"
    except OSError as error:
        return f"libvirtd there broke the TLS handshake off: {error.strerror or error}"
