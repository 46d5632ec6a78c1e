"""A host on which libvirt is slow to make the rules of a card whose address it has to learn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab.handle import Lab

# Every program of the family is one file, which goes by the name that it is called by.
_LATE = r"""
set -e
program=$(readlink -f "$(command -v ebtables)")
mkdir -p /run/late/real
cp "$program" /run/late/real/program
for name in ebtables iptables ip6tables; do ln -sf program /run/late/real/$name; done
cat >/run/late/program <<'SCRIPT'
#!/bin/sh
case "$*" in
    *"-A libvirt-J-"*"-s !"*) while [ -e /run/late/hold ]; do sleep 0.05; done ;;
esac
exec /run/late/real/"${0##*/}" "$@"
SCRIPT
chmod 755 /run/late/program
touch /run/late/hold
mount --bind /run/late/program "$program"
"""
_AGAIN = 'umount -l "$(readlink -f "$(command -v ebtables)")"; rm -rf /run/late'


@contextmanager
def rules_held(lab: Lab, host: str) -> Iterator[Callable[[], None]]:
    """Let libvirt begin the rules of such a card, and not get on, until the yielded is called."""

    def release() -> None:
        lab.exec(host, ["rm", "-f", "/run/late/hold"])

    lab.exec(host, ["sh", "-c", _LATE])
    try:
        yield release
    finally:
        release()
        lab.exec(host, ["sh", "-c", _AGAIN])
