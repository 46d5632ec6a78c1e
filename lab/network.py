"""The lab's network: a switch in a namespace of its own, and cables to hosts and services.

Two bridges live in the switch: ``mgmt`` joins the hosts' own addresses and the services, ``guest``
joins the ``br0`` of every host, so guests reach each other across hosts. They stay out of the root
namespace because a Docker engine there drops what a bridge forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.errors import LabError
from lab.namespaces import Namespaces, hold
from lab.processes import ProcessTable

SERVICES = "services"
"""What `cut` calls the side of Postgres, Redis and everything else outside the hosts."""

_SUBNETS = range(1, 255)


@dataclass(frozen=True)
class Subnet:
    """10.213.N.0/24."""

    number: int

    @property
    def services_address(self) -> str:
        """Where Postgres and Redis listen."""
        return f"10.213.{self.number}.1"

    @property
    def uplink(self) -> str:
        """Name of the services' end of the cable: the only interface in the root namespace."""
        return f"innlab{self.number}"

    def host_address(self, index: int) -> str:
        """Return a host's own address."""
        return f"10.213.{self.number}.{10 + index}"

    @property
    def storage_address(self) -> str:
        """Where the storage's server listens."""
        return f"10.213.{self.number}.2"


@dataclass(frozen=True)
class Cut:
    """A broken path between two members of the network.

    Attributes:
        one_way: drop only what goes from ``a`` to ``b``.
        port: drop only TCP from or to this port.
    """

    a: str
    b: str
    one_way: bool = False
    port: int | None = None

    def rules(self, addresses: dict[str, str]) -> list[str]:
        """Return the nftables rules that make this cut."""
        directions = [(self.a, self.b)] if self.one_way else [(self.a, self.b), (self.b, self.a)]
        rules = []
        for source, target in directions:
            path = f"ip saddr {addresses[source]} ip daddr {addresses[target]}"
            if self.port is None:
                rules.append(f"{path} drop")
            else:
                rules += [f"{path} tcp {end} {self.port} drop" for end in ("sport", "dport")]
        return rules


class Network:
    """The switch of one lab and what is plugged into it."""

    def __init__(self, table: ProcessTable, switch: Namespaces, subnet: Subnet) -> None:
        self.subnet = subnet
        self.addresses = {SERVICES: subnet.services_address}
        self._table = table
        self._switch = switch
        self._cuts: list[Cut] = []

    @classmethod
    async def create(cls, table: ProcessTable, preferred: int | None) -> Network:
        """Build the switch and plug the root namespace into it on a free subnet."""
        switch = await hold(table, "switch", ("net",))
        subnet = await _claim_subnet(table, switch, preferred)
        network = cls(table, switch, subnet)
        await network._ip(
            switch,
            "link set lo up",
            "link add mgmt type bridge",
            "link add guest type bridge",
            "link set services master mgmt",
            "link set services up",
            "link set mgmt up",
            "link set guest up",
        )
        await network._ip(
            None,
            f"addr add {subnet.services_address}/24 dev {subnet.uplink}",
            f"link set {subnet.uplink} up",
        )
        return network

    async def plug(self, host: str, index: int, namespaces: Namespaces) -> None:
        """Give a host its address on ``eth0`` and a guest bridge ``br0`` with an uplink."""
        address = self.subnet.host_address(index)
        inside, switch = namespaces.holder.pid, self._switch.holder.pid
        await self._ip(
            None,
            f"link add eth0 netns {inside} type veth peer name {host} netns {switch}",
            f"link add uplink netns {inside} type veth peer name {host}-guest netns {switch}",
        )
        await self._ip(
            self._switch,
            f"link set {host} master mgmt",
            f"link set {host} up",
            f"link set {host}-guest master guest",
            f"link set {host}-guest up",
        )
        await self._ip(
            namespaces,
            "link set lo up",
            f"addr add {address}/24 dev eth0",
            "link set eth0 up",
            "link add br0 type bridge",
            "link set uplink master br0",
            "link set uplink up",
            "link set br0 up",
        )
        self.addresses[host] = address

    async def plug_storage(self, name: str, namespaces: Namespaces) -> None:
        """Give the storage's server its address on ``eth0``; guests do not see it."""
        address = self.subnet.storage_address
        inside, switch = namespaces.holder.pid, self._switch.holder.pid
        await self._ip(
            None, f"link add eth0 netns {inside} type veth peer name {name} netns {switch}"
        )
        await self._ip(self._switch, f"link set {name} master mgmt", f"link set {name} up")
        await self._ip(
            namespaces,
            "link set lo up",
            f"addr add {address}/24 dev eth0",
            "link set eth0 up",
        )
        self.addresses[name] = address

    async def cut(self, cut: Cut) -> None:
        """Drop packets as the cut says; established connections feel it too."""
        for name in (cut.a, cut.b):
            if name not in self.addresses:
                raise LabError(
                    f"cut: there is no {name!r}; known: {', '.join(sorted(self.addresses))}"
                )
        if cut not in self._cuts:
            self._cuts.append(cut)
            await self._apply()

    async def heal(self, pair: tuple[str, str] | None) -> None:
        """Undo the cuts between two members, or all of them."""
        self._cuts = [c for c in self._cuts if pair is not None and {c.a, c.b} != set(pair)]
        await self._apply()

    async def unplug_services(self) -> None:
        """Remove the cable to the root namespace now; the kernel would do so a moment later."""
        await self._table.run("ip", "link", "delete", self.subnet.uplink)

    @property
    def switch_pid(self) -> int:
        """A process in the switch's namespace, as the rest of the machine numbers it."""
        return self._switch.holder.outer_pid

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """What is cut now."""
        return tuple(self._cuts)

    async def _apply(self) -> None:
        rules = "\n".join(rule for cut in self._cuts for rule in cut.rules(self.addresses))
        # One nft transaction: there is no moment with half of the rules.
        ruleset = (
            "table bridge lab\ndelete table bridge lab\ntable bridge lab {\n"
            f"chain cuts {{ type filter hook forward priority 0; policy accept;\n{rules}\n}}\n}}\n"
        )
        await self._table.run(*self._switch.command(["nft", "-f", "-"]), stdin=ruleset)

    async def _ip(self, where: Namespaces | None, *lines: str) -> None:
        argv = ["ip", "-batch", "-"]
        command = argv if where is None else where.command(argv)
        await self._table.run(*command, stdin="\n".join(lines) + "\n")


async def _claim_subnet(table: ProcessTable, switch: Namespaces, preferred: int | None) -> Subnet:
    """Take a subnet nobody uses: the interface's name is the lock, the kernel keeps it."""
    routes = await table.run("ip", "-4", "route", "show", "table", "all")
    candidates = [n for n in ([preferred] if preferred else []) if n in _SUBNETS]
    candidates += [n for n in _SUBNETS if n != preferred]
    for number in candidates:
        subnet = Subnet(number)
        if f"10.213.{number}." in routes:
            continue
        try:
            await table.run(
                *("ip", "link", "add", subnet.uplink, "type", "veth"),
                *("peer", "name", "services", "netns", str(switch.holder.pid)),
            )
        except LabError as error:
            if "File exists" in str(error):
                continue
            raise
        return subnet
    raise LabError(
        "no free subnet in 10.213.1.0 … 10.213.254.0: take down labs you do not need (`ip link`"
        " shows them as innlabN) or remove the route that covers 10.213.0.0/16."
    )
