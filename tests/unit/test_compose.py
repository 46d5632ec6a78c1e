"""compose.yaml: what has to be there, and what must never get in."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
DEFAULTS = dict(
    line.split("=", 1)
    for line in (ROOT / "container" / "env.example").read_text().splitlines()
    if line and not line.startswith("#")
)


def test_all_services_are_there():
    assert set(SERVICES) == {
        *("postgres", "redis", "migrate", "control", "beat", "flower", "hv-a", "hv-b")
    }


def test_only_flower_is_published_and_only_on_localhost():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"flower"}
    assert all(port.startswith("127.0.0.1:") for port in published["flower"])
    assert not any("network_mode" in service for service in SERVICES.values())


def test_passwords_come_from_the_environment():
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable:
                assert value.startswith("${INNKEEPER_DB_PASSWORD:-"), name
            assert not re.search(r"://[^/@]*:[^/@]+@", value), f"password in {name} {variable}"


def test_every_setting_has_its_documented_default():
    assert dict(re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT)) == DEFAULTS


@pytest.mark.parametrize("name", ["hv-a", "hv-b"])
def test_hypervisors_share_only_the_shared_pool_and_the_images(name):
    other = SERVICES["hv-b" if name == "hv-a" else "hv-a"]
    common = set(SERVICES[name]["volumes"]) & set(other["volumes"])
    assert {volume.rsplit(":", 1)[-1] for volume in common} == {"/srv/innkeeper-shared", "ro"}


def test_everything_but_the_migrations_is_watched_and_restarted():
    for name, service in SERVICES.items():
        if name == "migrate":
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped", name
            assert "healthcheck" in service, name
