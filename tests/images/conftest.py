"""A host's parts without a hypervisor: a real cache, a real Postgres, steps of real operations."""

import hashlib
import os
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from innkeeper.states import OperationState
from models import ledger
from models.event import Event
from models.instance import Instance
from models.operation import Operation
from models.operations import PlannedStep, end_operation, insert_operation, take_instance
from models.session import Database
from tasks.context import HostServices, Pool, StepContext
from tasks.guest_abi import GuestDefaults
from tasks.image_holding import Origin, hold_image, record_held
from tasks.image_policy import CacheLimits
from tasks.image_upkeep import ImageUpkeep
from tasks.leases import HeldLease
from tests.models.rows import add_host, add_instance, new_operation
from virt.hypervisor import Hypervisor
from virt.image_scrub import Scrubber
from virt.images import CachedImage, ImageCache

MIB = 1 << 20
HOST = "hv-a"


@dataclass
class CacheHost:
    """One host with one pool, as its worker would have built it."""

    database: Database
    sources: Path
    pool: Pool
    limits: CacheLimits = field(default_factory=CacheLimits)
    scrub_mib_s: float = 0.0
    scrub_interval_s: float = 0.0
    name: str = HOST

    @property
    def services(self) -> HostServices:
        return HostServices(
            name=self.name,
            hypervisor=cast(Hypervisor, None),
            pools={self.pool.name: self.pool},
            lock_dir=self.pool.path / "locks",
            console_dir=self.pool.path / "consoles",
            migration_address="127.0.0.1",
            domain_type="qemu",
            guest_defaults=GuestDefaults(),
            image_limits=self.limits,
            scrubber=Scrubber(self.scrub_mib_s * MIB),
            scrub_interval_s=self.scrub_interval_s,
            scrub_slice_s=5.0,
        )

    def upkeep(self) -> ImageUpkeep:
        return ImageUpkeep(self.database, self.services)

    def make_image(self, size_kib: int = 64) -> tuple[Path, str]:
        """Make a qcow2 of random bytes; return where it lies and its digest."""
        seed = self.sources / f"{uuid.uuid4().hex}.seed"
        seed.write_bytes(os.urandom(size_kib * 1024))
        path = seed.with_suffix(".qcow2")
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(seed), str(path)]
        subprocess.run(command, check=True)
        seed.unlink()
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    def begin_step(self) -> StepContext:
        """Begin the first step of a new guest's spawn, as a worker would."""

        def begin(session: Session) -> StepContext:
            instance_id = add_instance(session, f"vm-{uuid.uuid4().hex[:8]}", host=self.name)
            new = new_operation("spawn", deadline_s=600)
            insert_operation(session, new, [PlannedStep("fetch_image", self.name)])
            instance = session.get_one(Instance, instance_id)
            take_instance(session, instance_id, new, allowed=frozenset({instance.state}))
            step = ledger.claim_step(session, new.id, 0, owner="test#1")
            assert step is not None
            return StepContext(
                database=self.database,
                operation=session.get_one(Operation, new.id),
                step=step,
                details={},
                lease=HeldLease(step.key),
                services=self.services,
                _instance=instance,
            )

        return self.database.run(begin)

    def hold(self, context: StepContext, source: Path, digest: str | None) -> CachedImage:
        """Hold an image for a step, and record it."""
        origin = Origin(url=str(source), sha256=digest)
        image = hold_image(
            context, self.pool, origin, "qcow2", on_progress=lambda _done, _total: None
        )
        place = self.pool.place_on(self.name)
        self.database.run(lambda session: record_held(session, place, image, origin))
        return image

    def end(self, context: StepContext) -> None:
        """End a step's operation: what it held is nobody's."""
        self.database.run(
            lambda session: end_operation(
                session, context.operation.id, OperationState.SUCCEEDED, result={}
            )
        )

    def fill(self, source: Path, digest: str) -> CachedImage:
        """Have an image in the cache that nobody holds."""
        context = self.begin_step()
        image = self.hold(context, source, digest)
        self.end(context)
        return image

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        with self.database.transaction() as session:
            rows = session.execute(select(Event.kind, Event.data).order_by(Event.id))
            return [(row.kind, row.data) for row in rows]


@pytest.fixture
def new_host(database: Database, tmp_path: Path) -> Callable[[str], CacheHost]:
    (tmp_path / "sources").mkdir()

    def make(name: str) -> CacheHost:
        root = tmp_path / name
        pool = Pool(
            name="local",
            path=root,
            shared=False,
            trusted_coherent=False,
            images=ImageCache(
                root / "images", allowed_file_roots=(tmp_path / "sources",), max_bytes=64 * MIB
            ),
        )
        with database.transaction() as session:
            add_host(session, name)
        return CacheHost(database, tmp_path / "sources", pool, name=name)

    return make


@pytest.fixture
def host(new_host: Callable[[str], CacheHost]) -> CacheHost:
    return new_host(HOST)
