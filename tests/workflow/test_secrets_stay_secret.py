"""A sealed secret is nowhere in the clear but on the guest's drive and in the guest.

Everything that the system keeps or says is searched while it works and afterwards, each place
together with a word that must be found there, so that an empty place cannot pass.
"""

import base64
import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import FileInjectionFailed
from lab.handle import Lab
from models.session import Database
from tests.workflow.guest_inside import read_inside

pytestmark = pytest.mark.lab


class Eavesdropper:
    """Writes down every command that Redis gets, and every command line of the machine."""

    def __init__(self, lab: Lab) -> None:
        self._redis = redis.Redis.from_url(lab.env()["INNKEEPER_BROKER_URL"])
        self._stop = threading.Event()
        self.redis: list[str] = []
        self.command_lines: set[bytes] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        with self._redis.monitor() as monitor:
            threads = [
                threading.Thread(target=self._listen, args=(monitor,), daemon=True),
                threading.Thread(target=self._look, daemon=True),
            ]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stop.set()
                # The command that wakes the listener for the last time.
                self._redis.ping()
                for thread in threads:
                    thread.join(10)

    def _listen(self, monitor: Any) -> None:
        for command in monitor.listen():
            self.redis.append(command["command"])
            if self._stop.is_set():
                return

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.command_lines.add(path.read_bytes())
                except OSError:
                    continue


def dump(records: Database) -> str:
    """Return every row of every table as text."""
    rows: list[str] = []
    with records.transaction() as session:
        tables = session.scalars(
            text("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
        ).all()
        for table in tables:
            found = session.scalars(text(f"SELECT t::text FROM {table} AS t"))
            rows += [f"{table}: {row}" for row in found]
    return "\n".join(rows)


def forms(secret: str) -> list[str]:
    """Return how a secret may look when it has been carried about: as it is, or as base64."""
    plain = secret.encode()
    coded = []
    for shift in range(3):
        # Within a longer text; the characters at both ends depend on the neighbours.
        whole = base64.b64encode(b"\0" * shift + plain).decode()
        coded.append(whole[-(-shift * 8 // 6) : (shift + len(plain)) * 8 // 6])
    return [secret, plain.hex(), *coded]


def test_a_sealed_secret_is_found_only_on_the_drive(
    client: Innkeeper, lab: Lab, records: Database, name: str, linux_guest: dict[str, Any]
) -> None:
    secrets = [f"hush{uuid.uuid4().hex}" for _ in range(4)]
    password, user_data, on_drive, by_agent = secrets
    data = {
        "drive": "both",
        "admin_password": client.seal(password),
        "user_data": client.seal(f"#!/bin/sh\n: {user_data}\n"),
        "files": [
            {"path": "/srv/drive", "content": client.seal(on_drive)},
            {"path": "/srv/agent", "content": client.seal(by_agent), "via": "agent"},
        ],
    }
    refused = {**data["files"][1], "owner": "nobody-here"}
    ear = Eavesdropper(lab)
    with ear.listening():
        operation = client.spawn(name=name, **linux_guest, data=data)
        guest = operation.wait(120)
        host = guest["host"]
        doomed = client.spawn(name=f"{name}-x", **linux_guest, data={**data, "files": [refused]})
        with pytest.raises(FileInjectionFailed) as caught:
            doomed.wait(120)
        answers = [
            client.instance(name).model_dump_json(),
            operation.view().model_dump_json(),
            doomed.view().model_dump_json(),
            json.dumps(caught.value.to_wire()),
            json.dumps(guest),
        ]
    assert read_inside(lab, host, name, "/srv/agent").decode() == by_agent

    xml = lab.exec(host, ["virsh", "dumpxml", "--security-info", name]).stdout
    logs = [path.read_text(errors="replace") for path in lab.layout.logs.glob("*.log")]
    places = {
        "redis": ("\n".join(ear.redis), name),
        "postgres": (dump(records), name),
        "logs": ("\n".join(logs), guest["id"]),
        "answers": ("\n".join(answers), name),
        "xml": (xml, "config-drive.iso"),
        "command lines": (
            b"\n".join(ear.command_lines).decode(errors="replace"),
            f"guest={name}",
        ),
    }
    for place, (said, known) in places.items():
        assert known in said, f"{place} was not searched: {known} is missing"
        for secret in secrets:
            for form in forms(secret):
                assert form not in said, f"{form} is in {place}"
    # Messages' bodies are base64, so the search must have seen through it.
    for place in ("redis", "postgres"):
        assert any(form in places[place][0] for form in forms("sealed:v1:")), place


def test_of_all_files_only_the_drive_holds_it(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    secret = f"hush{uuid.uuid4().hex}"
    data = {"drive": "config-2", "user_data": client.seal(f"#!/bin/sh\n: {secret}\n")}
    guest = client.spawn(name=name, **boot_guest, data=data).wait(120)
    # Postgres's files and its log of writes, Redis's file, the logs, libvirt's own, the pools.
    found = subprocess.run(
        ["grep", "-rlF", "--devices=skip", secret, str(lab.layout.root)],
        capture_output=True,
        text=True,
    ).stdout.split()
    drive = lab.layout.host(guest["host"]) / "innkeeper/instances" / guest["id"]
    assert found == [str(drive / "config-drive.iso")]
