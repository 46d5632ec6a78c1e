"""What may differ between two documents of one shape, and what may not."""

from pathlib import Path
from uuid import uuid4

import pytest

from virt.domain_reading import shape_of
from virt.domain_xml import DiskSpec, DomainSpec, render_domain


def spec(**changes: object) -> DomainSpec:
    fields: dict[str, object] = {
        "instance_id": uuid4(),
        "name": f"vm-{uuid4().hex[:6]}",
        "epoch": 1,
        "operation_id": uuid4(),
        "vcpus": 1,
        "memory_mib": 64,
        "machine": "pc-i440fx-7.2",
        "domain_type": "qemu",
        "cpu": None,
        "disks": (
            DiskSpec(
                target="vda",
                path=str(Path("/a") / uuid4().hex),
                format="qcow2",
                backing_path="/b/base",
                backing_format="qcow2",
            ),
        ),
        "nics": (),
        "console_log_path": f"/c/{uuid4().hex}",
    }
    return DomainSpec(**{**fields, **changes})  # type: ignore[arg-type]


def test_two_guests_of_one_kind_have_one_shape() -> None:
    assert shape_of(render_domain(spec())) == shape_of(render_domain(spec(memory_mib=128, epoch=7)))


@pytest.mark.parametrize(
    "change", [{"machine": "pc-q35-7.2"}, {"domain_type": "kvm"}, {"cpu": "qemu64"}, {"disks": ()}]
)
def test_another_kind_has_another_shape(change: dict[str, object]) -> None:
    assert shape_of(render_domain(spec())) != shape_of(render_domain(spec(**change)))


def test_what_is_no_xml_is_said_to_be_none() -> None:
    with pytest.raises(ValueError, match="not XML"):
        shape_of("<domain")
