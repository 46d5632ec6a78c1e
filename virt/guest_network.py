"""What a guest is told of its network, in OpenStack's words and in netplan's. Pure."""

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

Document = dict[str, Any]
Interface = IPv4Interface | IPv6Interface

EVERYWHERE = {4: ("0.0.0.0", "0.0.0.0"), 6: ("::", "::")}  # noqa: S104 (a route, not a socket)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """A network card as the guest shall set it up.

    Args:
        mac: by which the guest finds it.
        addresses: with prefix lengths; none for DHCP.
        gateway: the default route; stands with the first address of its family.
        nameservers: DNS servers.
        mtu: None for the default.
    """

    mac: str
    addresses: tuple[str, ...] = ()
    gateway: str | None = None
    nameservers: tuple[str, ...] = ()
    mtu: int | None = None


def network_data(cards: tuple[CardFacts, ...]) -> Document:
    """Return OpenStack's network_data.json."""
    links: list[Document] = []
    networks: list[Document] = []
    services: list[Document] = []
    for number, card in enumerate(cards):
        link: Document = {"id": f"nic{number}", "type": "phy", "ethernet_mac_address": card.mac}
        if card.mtu is not None:
            link["mtu"] = card.mtu
        links.append(link)
        for network in _networks(card):
            identity = f"network{len(networks)}"
            networks.append({"id": identity, "link": link["id"], "network_id": identity, **network})
        for server in card.nameservers:
            service = {"type": "dns", "address": server}
            if service not in services:
                services.append(service)
    return {"links": links, "networks": networks, "services": services}


def _networks(card: CardFacts) -> list[Document]:
    dns = [{"type": "dns", "address": server} for server in card.nameservers]
    if not card.addresses:
        return [{"type": "ipv4_dhcp"}]
    found = []
    routed = _routed(card)
    for text in card.addresses:
        interface = ip_interface(text)
        any_address, any_mask = EVERYWHERE[interface.version]
        network: Document = {
            "type": f"ipv{interface.version}",
            "ip_address": str(interface.ip),
            "netmask": str(interface.netmask),
            "routes": [],
            "services": dns,
        }
        if text == routed:
            route = {"network": any_address, "netmask": any_mask, "gateway": card.gateway}
            network["routes"].append(route)
        found.append(network)
    return found


def network_config(cards: tuple[CardFacts, ...]) -> Document:
    """Return NoCloud's network-config, version 2."""
    ethernets = {}
    for number, card in enumerate(cards):
        ethernet: Document = {"match": {"macaddress": card.mac}}
        if card.addresses:
            ethernet["addresses"] = list(card.addresses)
        else:
            ethernet["dhcp4"] = True
        if card.gateway is not None and _routed(card) is not None:
            everywhere = EVERYWHERE[ip_address(card.gateway).version][0] + "/0"
            ethernet["routes"] = [{"to": everywhere, "via": card.gateway}]
        if card.nameservers:
            ethernet["nameservers"] = {"addresses": list(card.nameservers)}
        if card.mtu is not None:
            ethernet["mtu"] = card.mtu
        ethernets[f"nic{number}"] = ethernet
    return {"version": 2, "ethernets": ethernets}


def _routed(card: CardFacts) -> str | None:
    """Return the address that the default route goes with; None without one."""
    if card.gateway is None:
        return None
    version = ip_address(card.gateway).version
    return next((a for a in card.addresses if ip_interface(a).version == version), None)
