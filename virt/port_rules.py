"""The anti-spoof rules of a guest's port, read back from the kernel.

Libvirt binds a filter to a port before its rules are there where it has to learn the card's address
first: a thread of its own makes them, some fifty programs later. Libvirt tells of that neither by a
look nor by an event.
"""

import re
import subprocess

_LIST = ("ebtables", "--concurrent", "-t", "nat", "-L")
_TIMEOUT_S = 5.0
_FIRST_CHAIN = "PREROUTING"
_CHAIN = re.compile(r"Bridge chain: ([^,]+),")
# The older program leaves out leading zeros.
_MAC = re.compile(r"(?:[0-9a-f]{1,2}:){5}[0-9a-f]{1,2}", re.IGNORECASE)

Chains = dict[str, list[list[str]]]


def find_rules_problem(port: str, mac: str) -> str | None:
    """Return why the rules of a port's filter are not in the kernel; None when they are.

    Args:
        port: the host's end of the guest's network card.
        mac: the card's address.
    """
    try:
        done = subprocess.run(_LIST, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the rules of port {port} cannot be read: {error}"
    if done.returncode != 0:
        return f"the rules of port {port} cannot be read: {done.stderr.strip()[-300:]}"
    if not are_made(parse_chains(done.stdout), port, mac):
        return f"the rules of port {port} are not made yet"
    return None


def parse_chains(listing: str) -> Chains:
    """Return what ``ebtables -L`` prints of a table: for each chain its rules, in words."""
    chains: Chains = {}
    rules: list[list[str]] = []
    for line in listing.splitlines():
        head = _CHAIN.match(line)
        if head is not None:
            rules = chains.setdefault(head[1], [])
        elif line.startswith("-"):
            rules.append(line.split())
    return chains


def are_made(chains: Chains, port: str, mac: str) -> bool:
    """Return whether the kernel leads a port's frames to rules that were made for its card.

    Libvirt links a port's rules when all of them are there. They name the card's address, whether
    the other one is learned still or known; where learning has failed they drop everything. Rules
    that an earlier port of the same name has left behind name another address.
    """
    for rule in chains.get(_FIRST_CHAIN, ()):
        if rule[:3] == ["-i", port, "-j"] and len(rule) == 4:
            first = chains.get(rule[3], [])
            return first == [["-j", "DROP"]] or _name_source(chains, first, mac)
    return False


def _name_source(chains: Chains, rules: list[list[str]], mac: str) -> bool:
    """Return whether a rule here, or in a chain to which one leads, asks for the source address."""
    for rule in rules:
        if "-s" in rule and any(_is_same(word, mac) for word in rule):
            return True
        if rule[:1] == ["-j"] and _name_source(chains, chains.get(rule[1], []), mac):
            return True
    return False


def _is_same(one: str, other: str) -> bool:
    return _octets(one) == _octets(other) is not None


def _octets(mac: str) -> list[int] | None:
    return [int(part, 16) for part in mac.split(":")] if _MAC.fullmatch(mac) else None
