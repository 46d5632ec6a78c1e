"""What is wrong with a bridge or a port, read from a made-up /sys."""

from pathlib import Path

import pytest

from virt.domain_reading import GuestPort, list_bridges, list_ports
from virt.links import find_bridge_problem, find_port_problem

LIVE = """<domain type='qemu'><devices>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>
<target dev='vnet0'/><filterref filter='clean-traffic'/></interface>
<interface type='user'><mac address='52:54:00:00:00:02'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:03'/><source bridge='br0'/>
<target dev='vnet1'/></interface>
</devices></domain>"""


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for bridge, flags in (("br0", "0x1003"), ("br1", "0x1003"), ("off", "0x1002")):
        (tmp_path / bridge / "bridge").mkdir(parents=True)
        (tmp_path / bridge / "flags").write_text(flags + "\n")
    for port, flags, master in (
        ("vnet0", "0x1103", "br0"),
        ("vnet1", "0x1103", "br1"),
        ("vnet2", "0x1102", "br0"),
        ("vnet3", "0x1103", None),
        ("vnet4", "0x1103", "off"),
    ):
        (tmp_path / port).mkdir()
        (tmp_path / port / "flags").write_text(flags + "\n")
        if master is not None:
            (tmp_path / port / "master").symlink_to(tmp_path / master)
    return tmp_path


@pytest.mark.parametrize(
    ("port", "problem"),
    [
        ("vnet0", None),
        ("vnet1", "port vnet1 is on br1, not on br0"),
        ("vnet2", "port vnet2 is down"),
        ("vnet3", "port vnet3 is on no bridge, not on br0"),
        ("vnet9", "port vnet9 does not exist"),
    ],
)
def test_ports(sysfs: Path, port: str, problem: str | None) -> None:
    assert find_port_problem(port, "br0", sysfs) == problem


def test_a_port_on_a_bridge_that_is_down(sysfs: Path) -> None:
    assert find_port_problem("vnet4", "off", sysfs) == "bridge off is down"


@pytest.mark.parametrize(
    ("bridge", "problem"),
    [
        ("br0", None),
        ("br9", "bridge br9 does not exist"),
        ("vnet0", "vnet0 is not a bridge"),
        ("off", "bridge off is down"),
    ],
)
def test_bridges(sysfs: Path, bridge: str, problem: str | None) -> None:
    assert find_bridge_problem(bridge, sysfs) == problem


def test_ports_and_bridges_of_a_domain() -> None:
    assert list_bridges(LIVE) == ("br0",)
    assert list_bridges("") == ()
    assert list_ports(LIVE) == (
        GuestPort(name="vnet0", bridge="br0", mac="52:54:00:00:00:01", filter_name="clean-traffic"),
        GuestPort(name="vnet1", bridge="br0", mac="52:54:00:00:00:03", filter_name=None),
    )
