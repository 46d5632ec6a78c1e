"""Image caches on the lab's hosts: leases, rot, pre-warming."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text

from innkeeper import Innkeeper
from innkeeper.errors import Cancelled, NotFound
from lab.handle import Lab
from models.event import Event
from models.session import Database
from tests.chaos.asking import plain_celery
from tests.virt.image_server import Server
from tests.workflow.conftest import wait_until

pytestmark = pytest.mark.lab


@pytest.fixture
def origin(lab: Lab) -> Iterator[Server]:
    """An HTTP server that the lab's hosts reach."""
    with Server(lab.description.endpoints.address) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def serve_image(origin: Server, tmp_path: Path, size_kib: int = 256) -> tuple[str, str]:
    """Serve a fresh image; return its address and digest."""
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(os.urandom(size_kib * 1024))
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)]
    subprocess.run(command, check=True)
    for path in ("/image.qcow2", "/image.qcow2?token=hush"):
        origin.files[path] = image.read_bytes()
    return origin.url("/image.qcow2"), hashlib.sha256(image.read_bytes()).hexdigest()


def cached_file(lab: Lab, host: str, digest: str) -> Path:
    return lab.layout.host(host) / "innkeeper" / "images" / f"{digest}.qcow2"


def ask_for_upkeep(lab: Lab, host: str) -> None:
    env = lab.env()
    with plain_celery(env["INNKEEPER_BROKER_URL"], env["INNKEEPER_RESULT_URL"]) as app:
        app.send_task("innkeeper.image.upkeep", queue=f"host.{host}")


def events(records: Database, digest: str, host: str) -> list[str]:
    with records.transaction() as session:
        rows = session.execute(select(Event.kind, Event.data, Event.host).order_by(Event.id))
        return [r.kind for r in rows if r.data.get("sha256") == digest and r.host == host]


def make_due(records: Database, digest: str) -> None:
    with records.transaction() as session:
        session.execute(
            text("UPDATE cached_images SET verified_at = NULL WHERE sha256 = :sha256"),
            {"sha256": digest},
        )


def test_rot_is_found_healed_and_told_and_the_next_guest_boots(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], records: Database
) -> None:
    host, digest = lab.hosts[0], boot_guest["sha256"]
    client.spawn(name=name, host=host, **boot_guest).wait(120)
    file = cached_file(lab, host, digest)
    with open(file, "r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    make_due(records, digest)
    before = len(events(records, digest, host))
    ask_for_upkeep(lab, host)
    wait_until(lambda: "image.healed" in events(records, digest, host)[before:], what="healed")
    assert events(records, digest, host)[before:] == ["image.rotten", "image.healed"]
    with records.transaction() as session:
        told = session.scalars(
            select(Event.data).where(Event.kind == "image.rotten").order_by(Event.id.desc())
        ).first()
    assert told is not None
    assert name in told["held_by"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    client.stop(name, force=True).wait(60)
    client.start(name).wait(60)
    client.delete(name).wait(60)
    assert client.spawn(name=name, host=host, **boot_guest).wait(120)["state"] == "active"


def test_a_prewarmed_image_is_there_and_told_and_nobody_fetches_it_twice(
    client: Innkeeper, lab: Lab, origin: Server, tmp_path: Path
) -> None:
    url, digest = serve_image(origin, tmp_path)
    operation = client.prewarm(f"{url}?token=hush", sha256=digest)
    result = operation.wait(120)
    assert (result["cached"], result["existing"], result["errors"]) == (len(lab.hosts), 0, 0)
    assert {each["host"] for each in result["hosts"]} == set(lab.hosts)
    assert operation.view().progress.fraction == 1.0
    again = client.prewarm(url, sha256=digest, hosts=[lab.hosts[0]]).wait(60)
    assert [(each["host"], each["outcome"]) for each in again["hosts"]] == [
        (lab.hosts[0], "existing")
    ]
    fetched = [path for path, _ in origin.requests]
    assert len(fetched) == len(lab.hosts)
    copies = [view for view in client.images() if view.sha256 == digest]
    assert [copy.host for copy in copies] == sorted(lab.hosts)
    assert {(copy.state, copy.guests) for copy in copies} == {("ready", 0)}
    assert all("hush" not in (copy.source or "") for copy in copies)
    assert [view.host for view in client.images(lab.hosts[1])] != []
    assert {view.host for view in client.images(lab.hosts[1])} == {lab.hosts[1]}


def test_a_host_that_cannot_have_the_image_says_why_and_fails_nobody_else(
    client: Innkeeper, lab: Lab, origin: Server, tmp_path: Path
) -> None:
    url, digest = serve_image(origin, tmp_path)
    client.prewarm(url, sha256=digest, hosts=[lab.hosts[1]]).wait(60)
    origin.files.clear()
    result = client.prewarm(url, sha256=digest, hosts=list(lab.hosts)).wait(120)
    outcomes = {each["host"]: each for each in result["hosts"]}
    assert outcomes[lab.hosts[0]]["outcome"] == "error"
    assert "404" in outcomes[lab.hosts[0]]["message"]
    assert outcomes[lab.hosts[1]]["outcome"] == "existing"
    with pytest.raises(NotFound, match="no host 'hv-z'"):
        client.prewarm(url, sha256=digest, hosts=["hv-z"]).wait(60)


def test_a_host_that_goes_down_is_passed_over(
    client: Innkeeper, lab: Lab, origin: Server, tmp_path: Path, records: Database
) -> None:
    a, b = lab.hosts[:2]
    url, digest = serve_image(origin, tmp_path)
    lab.kill(f"worker:{a}")
    operation = client.prewarm(url, sha256=digest, hosts=[a, b])
    wait_until(lambda: is_accepted(records, operation.id), what="it is accepted")
    with records.transaction() as session:
        session.execute(
            text("UPDATE hosts SET heartbeat_at = now() - interval '1 minute' WHERE name = :a"),
            {"a": a},
        )
    result = operation.wait(120)
    outcomes = {each["host"]: each for each in result["hosts"]}
    assert outcomes[b]["outcome"] == "cached"
    assert (outcomes[a]["outcome"], outcomes[a]["code"]) == ("error", "host_unsuitable")
    assert "is down" in outcomes[a]["message"]
    assert not cached_file(lab, a, digest).exists()
    refused = client.prewarm(url, sha256=digest, hosts=[b, a]).wait(60)
    assert [(each["host"], each["outcome"]) for each in refused["hosts"]] == [
        (b, "existing"),
        (a, "error"),
    ]


def is_accepted(records: Database, operation_id: UUID) -> bool:
    with records.transaction() as session:
        found = session.execute(
            text("SELECT count(*) FROM steps WHERE operation_id = :id"), {"id": operation_id}
        )
        return bool(found.scalar_one())


def test_a_prewarm_is_cancelled_in_the_middle_of_a_fetch(
    client: Innkeeper, lab: Lab, origin: Server, tmp_path: Path
) -> None:
    url, digest = serve_image(origin, tmp_path, size_kib=16 * 1024)
    origin.pause_s = 0.5
    operation = client.prewarm(url, sha256=digest)
    wait_until(lambda: bool(origin.requests), what="the fetch has begun")
    operation.cancel()
    with pytest.raises(Cancelled):
        operation.wait(60)
    assert len({path for path, _ in origin.requests}) == 1
    assert not any(cached_file(lab, host, digest).exists() for host in lab.hosts)


@pytest.fixture
def serving_host(lab: Lab) -> Iterator[str]:
    """A host whose worker serves its cache to others."""
    host = lab.hosts[0]
    lab.kill(f"worker:{host}")
    lab.start(f"worker:{host}", env={"INNKEEPER_IMAGE_PEER_PORT": "16600"})
    yield host
    lab.kill(f"worker:{host}")
    lab.start(f"worker:{host}", env={"INNKEEPER_IMAGE_PEER_PORT": "0"})


def test_a_host_fetches_from_another_when_the_origin_is_gone(
    client: Innkeeper, lab: Lab, origin: Server, tmp_path: Path, serving_host: str
) -> None:
    url, digest = serve_image(origin, tmp_path)
    client.prewarm(url, sha256=digest, hosts=[serving_host]).wait(120)
    origin.files.clear()
    asked = len(origin.requests)
    result = client.prewarm(url, sha256=digest, hosts=[lab.hosts[1]]).wait(120)
    assert [each["outcome"] for each in result["hosts"]] == ["cached"], result
    assert len(origin.requests) == asked
    fetched = cached_file(lab, lab.hosts[1], digest).read_bytes()
    assert hashlib.sha256(fetched).hexdigest() == digest
