"""What ``ebtables -L`` prints of libvirt's rules, and whether a port's are among them."""

import pytest

from virt.port_rules import are_made, parse_chains

MAC = "52:54:00:0c:07:02"

# As libvirt 9.0 makes them: vnet0 is learned, vnet1 has an address, learning has failed on vnet2.
LISTING = """Bridge table: nat

Bridge chain: PREROUTING, entries: 3, policy: ACCEPT
-i vnet0 -j libvirt-I-vnet0
-i vnet1 -j libvirt-I-vnet1
-i vnet2 -j libvirt-I-vnet2
-i vnet4 -j libvirt-I-vnet4

Bridge chain: OUTPUT, entries: 0, policy: ACCEPT

Bridge chain: POSTROUTING, entries: 1, policy: ACCEPT
-o vnet3 -j libvirt-O-vnet3

Bridge chain: libvirt-I-vnet0, entries: 4, policy: RETURN
-s ! 52:54:00:0c:07:02 -j DROP
-p IPv4 -j ACCEPT
-p ARP -j ACCEPT
-j DROP

Bridge chain: I-vnet1-arp-mac, entries: 2, policy: RETURN
-p ARP --arp-mac-src 52:54:00:0c:07:02 -j RETURN
-j DROP

Bridge chain: I-vnet1-mac, entries: 2, policy: RETURN
-s 52:54:00:0c:07:02 -j RETURN
-j DROP

Bridge chain: libvirt-I-vnet1, entries: 9, policy: RETURN
-j I-vnet1-mac
-p ARP -j I-vnet1-arp-mac
-p ARP -j ACCEPT
-j DROP

Bridge chain: libvirt-I-vnet2, entries: 1, policy: RETURN
-j DROP

Bridge chain: libvirt-J-vnet3, entries: 1, policy: RETURN
-s ! 52:54:00:0c:07:02 -j DROP

Bridge chain: libvirt-I-vnet4, entries: 0, policy: RETURN
"""


@pytest.mark.parametrize(
    ("port", "made"),
    [
        ("vnet0", True),
        ("vnet1", True),
        ("vnet2", True),
        # Begun, and not linked yet.
        ("vnet3", False),
        # Linked, and flushed by somebody.
        ("vnet4", False),
        ("vnet", False),
    ],
)
def test_rules_count_once_the_kernel_leads_there(port: str, made: bool) -> None:
    assert are_made(parse_chains(LISTING), port, MAC) is made


@pytest.mark.parametrize("port", ["vnet0", "vnet1"])
def test_an_earlier_ports_rules_do_not_count(port: str) -> None:
    assert not are_made(parse_chains(LISTING), port, "52:54:00:0c:07:03")


def test_the_older_ebtables_leaves_out_zeros() -> None:
    assert are_made(parse_chains(LISTING.replace(MAC, "52:54:0:c:7:2")), "vnet0", MAC)


def test_no_table_has_no_rules() -> None:
    assert not are_made(parse_chains("Bridge table: nat\n"), "vnet0", MAC)
