"""Images in the whole system: fetched once for twenty guests, and their secrets shown nowhere."""

import hashlib
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from innkeeper import Innkeeper
from innkeeper.errors import InvalidRequest
from lab.handle import Lab
from models.event import Event
from models.operation import Operation, Step
from models.session import Database
from tests.workflow.conftest import remove

pytestmark = pytest.mark.lab
GUESTS = 20


@pytest.fixture
def unseen_image(lab: Lab) -> Iterator[dict[str, Any]]:
    """The boot-sector image with other bytes: no host has it yet."""
    known = Path(lab.description.images.boot)
    image = known.with_name(f"unseen-{uuid.uuid4().hex[:8]}.qcow2")
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-o", "cluster_size=4096"]
    subprocess.run([*argv, known, image], check=True)
    # Behind its last cluster nothing is read; the bytes are others all the same.
    with image.open("ab") as file:
        file.write(uuid.uuid4().bytes.ljust(512, b"\0"))
    data = image.read_bytes()
    yield {
        "image": f"file://{image}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "sha512": hashlib.sha512(data).hexdigest(),
        "memory_mib": 32,
    }
    image.unlink()


def test_twenty_spawns_of_one_image_fetch_it_once(
    client: Innkeeper, lab: Lab, records: Database, unseen_image: dict[str, Any]
) -> None:
    prefix = f"t-{uuid.uuid4().hex[:6]}"
    names = [f"{prefix}-{number}" for number in range(GUESTS)]
    host = lab.hosts[0]
    try:
        operations = [client.spawn(name=name, host=host, **unseen_image) for name in names]
        for operation in operations:
            assert operation.wait(240)["state"] == "active"
        with records.transaction() as session:
            ids = [operation.id for operation in operations]
            details = session.scalars(
                select(Step.detail).where(Step.operation_id.in_(ids), Step.name == "fetch_image")
            ).all()
        assert len(details) == GUESTS
        assert sum(bool(detail["fetched"]) for detail in details) == 1
    finally:
        for name in names:
            remove(client, name)


def test_an_address_keeps_its_secret(
    client: Innkeeper, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    secret = "ecret" + uuid.uuid4().hex
    image = f"ftp://me:{secret}@images.example/a.qcow2?X-Amz-Signature={secret}"
    operation = client.spawn(name=name, image=image, memory_mib=64)
    with pytest.raises(InvalidRequest) as caught:
        operation.wait(120)
    shown = [caught.value.to_wire(), operation.view().model_dump(mode="json")]
    shown += [view.model_dump(mode="json") for view in client.operations()]
    shown += [client.events(limit=1000).model_dump(mode="json")]
    with records.transaction() as session:
        row = session.get_one(Operation, operation.id)
        shown += [row.error, row.params, row.progress, row.result]
        shown += session.scalars(select(Event.data)).all()
        for step in session.scalars(select(Step).where(Step.operation_id == operation.id)):
            shown += [step.detail, step.undo, step.error]
    text = json.dumps(shown, default=str)
    assert "<redacted>" in text
    assert secret not in text
