"""The host role: one hypervisor, its worker, its heartbeat, its events."""

import shutil
import socket
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from celery import Celery
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from innkeeper.errors import HypervisorError, InnkeeperError
from innkeeper.remote_source import parse_remote_source
from models.consoles import list_console_limits
from models.fencing import note_return
from models.hosts import (
    Heartbeat,
    HostRegistration,
    beat_heart,
    disable_host,
    enable_host,
    register_host,
)
from tasks.context import HostServices, Pool, RemotePolicy
from tasks.engine import Engine
from tasks.guest_abi import BASELINE_CPU, GuestDefaults
from tasks.image_policy import CacheLimits
from tasks.image_serving import find_served
from tasks.returning import clean_returned_host, report_unexpected
from virt.cage import get_cage
from virt.disks import get_file_system_id
from virt.hypervisor import Hypervisor
from virt.identity import get_or_create
from virt.image_scrub import Scrubber
from virt.images import ImageCache
from virt.rehearsal import Rehearsal
from virt.sharing import ensure_pool_id
from virt.tls_certificates import CertificatePlaces, is_address
from workers.consoles import ConsoleKeeper
from workers.engine import build_engine
from workers.events import EventPump
from workers.node_lock import take_node_lock
from workers.settings import Settings
from workers.worker import RETRY_S, run_worker

if TYPE_CHECKING:
    from workers.image_server import ImageServer

log = structlog.get_logger(__name__)

HEARTBEAT_S = 5.0
LIBVIRT_AT_START_S = 60.0
# A slice of the scrub occupies one of the worker's threads.
LONGEST_SCRUB_S = 10.0
MIB = 1024**2
GIB = 1024**3


class HostRole:
    """One hypervisor's worker process.

    Args:
        settings: this process's settings; ``host_name`` is the host's name in the database.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.host_name
        self.node = f"host-{self.name}"
        self._stop = threading.Event()
        self._pump: EventPump | None = None
        self._image_server: ImageServer | None = None
        self.hypervisor = Hypervisor(
            settings.libvirt_uri,
            name=self.name,
            domain_type=settings.domain_type,
            on_event=lambda event: self._pump.put(event) if self._pump else None,
            on_connected=self._on_connected,
            on_lost=self._on_lost,
        )
        self.services = build_services(settings, self.hypervisor)
        self.app: Celery
        self.engine: Engine
        self.app, self.engine = build_engine(
            settings,
            node=self.node,
            services=self.services,
            look_again=lambda instance_id: self._pump.look_at(instance_id) if self._pump else None,
        )
        self._registered = threading.Event()
        self._registering = threading.Lock()

    def run(self) -> int:
        """Work until told to stop; returns the exit code."""
        lock = take_node_lock(self.settings.lock_dir.parent, self.node)
        self._pump = EventPump(self.app, self.engine)
        self._pump.start()
        self.hypervisor.start()
        self._serve_images()
        self._await_libvirt()
        self._register_at_last()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        keeper = ConsoleKeeper(self.services.console_dir, self._find_console_limits)
        threading.Thread(
            target=keeper.run, args=(self._stop,), name="consoles", daemon=True
        ).start()
        try:
            return run_worker(
                self.app,
                self.engine,
                node=self.node,
                queue=f"host.{self.name}",
                concurrency=self.settings.concurrency,
                ready_file=self.settings.ready_file,
                on_stop=self._close,
            )
        finally:
            lock.close()

    def _serve_images(self) -> None:
        """Serve cached images to other hosts, where that is wanted."""
        if not self.settings.image_peer_port:
            return
        # Only here: a worker that serves nothing starts sooner.
        from workers.image_server import ImageServer

        pools = tuple(self.services.pools.values())
        try:
            self._image_server = ImageServer(
                self.services.migration_address,
                self.settings.image_peer_port,
                connections=self.settings.image_peer_connections,
                find_image=lambda name: find_served(pools, name),
            )
        except OSError as error:
            # Guests do not need it; other hosts fetch from the images' own addresses.
            log.error("cached images are not served", error=str(error))
            return
        self._image_server.start()

    def _await_libvirt(self) -> None:
        if not self.hypervisor.wait_connected(LIBVIRT_AT_START_S):
            raise SystemExit(
                f"libvirt at {self.settings.libvirt_uri} did not answer within "
                f"{LIBVIRT_AT_START_S:.0f} s; start libvirtd, then this worker again"
            )

    def _register_at_last(self) -> None:
        """Register as soon as Postgres is there; a host that comes up before it must not give up.

        Raises:
            FencingError: see register_host.
        """
        while True:
            try:
                self._register()
            except OperationalError as exc:
                log.warning("postgres is out of reach, the host waits", error=str(exc))
                self._stop.wait(RETRY_S)
            except HypervisorError as exc:
                # A host that was fenced must not act before it is clean.
                log.warning("libvirt is out of reach, the host waits", error=str(exc))
                self._stop.wait(RETRY_S)
            else:
                report_unexpected(self.engine.database, self.services)
                return

    def _register(self) -> None:
        registration = describe_host(
            self.settings,
            self.hypervisor,
            self.engine.leases.owner,
            image_peer_url=self._image_server.url if self._image_server else "",
        )

        def register(session: Session) -> bool:
            register_host(session, registration)
            # In one transaction: from the moment that it is heard no guest is taken from it.
            return note_return(session, self.name)

        with self._registering:
            if self.engine.database.run(register):
                clean_returned_host(self.engine.database, self.services)
        self.engine.database.run(lambda session: enable_host(session, self.name, kind="auto"))
        self._registered.set()
        if self._pump is not None:
            self._pump.request_full_sync()

    def _beat(self) -> None:
        """Say that the host lives, as long as its libvirt does."""
        while not self._stop.wait(HEARTBEAT_S):
            if not self.hypervisor.is_connected:
                continue
            try:
                with self.engine.database.transaction() as session:
                    heard = beat_heart(session, self.name, self.engine.leases.owner)
                if heard is Heartbeat.FENCED:
                    log.error("this host was fenced, and lives", host=self.name)
                    self._register()
            except (SQLAlchemyError, InnkeeperError) as exc:
                log.warning("heartbeat not written", error=str(exc))
                continue
            if heard is Heartbeat.REPLACED:
                log.error("another worker has registered for this host", host=self.name)

    def _find_console_limits(self, instance_ids: Collection[UUID]) -> dict[UUID, int | None]:
        return self.engine.database.run(lambda session: list_console_limits(session, instance_ids))

    def _on_connected(self) -> None:
        if not self._registered.is_set():
            return
        try:
            self._register()
        except (SQLAlchemyError, InnkeeperError):
            log.exception("host not registered again")

    def _on_lost(self, reason: str) -> None:
        log.warning("libvirt lost", reason=reason)
        if self._stop.is_set() or not self._registered.is_set():
            return
        text = f"libvirt lost: {reason}"
        try:
            self.engine.database.run(
                lambda session: disable_host(
                    session, self.name, kind="auto", disabled_by=self.node, reason=text
                )
            )
        except SQLAlchemyError:
            log.exception("host not disabled")

    def _close(self) -> None:
        self._stop.set()
        self.services.scrubber.stop.set()
        if self._image_server is not None:
            self._image_server.close()
        if self._pump is not None:
            self._pump.stop()
        self.hypervisor.close()


def build_services(settings: Settings, hypervisor: Hypervisor) -> HostServices:
    """Build the parts of this host that steps use, and make its directories."""
    roots = tuple(Path(root) for root in settings.allowed_file_roots.split(":") if root)
    pools = {}
    for name, pool in settings.pools.items():
        (pool.path / "instances").mkdir(parents=True, exist_ok=True)
        pools[name] = Pool(
            name=name,
            path=pool.path,
            shared=pool.shared,
            trusted_coherent=pool.trusted_coherent,
            images=ImageCache(
                pool.path / "images",
                allowed_file_roots=roots,
                max_bytes=settings.max_image_gib * GIB,
                cage=get_cage(settings.qemu_img_user),
            ),
        )
    listen_address = settings.migration_listen_address or (
        settings.migration_address if is_address(settings.migration_address) else None
    )
    return HostServices(
        name=settings.host_name,
        hypervisor=hypervisor,
        pools=pools,
        lock_dir=settings.lock_dir,
        console_dir=settings.state_dir / "consoles",
        migration_address=settings.migration_address or socket.gethostname(),
        listen_address=listen_address,
        rehearsal=Rehearsal(listen_address),
        tls_rule=settings.migration_tls,
        certificates=CertificatePlaces(
            libvirt=settings.libvirt_tls_dir, qemu=settings.qemu_tls_dir
        ),
        domain_type=settings.domain_type,
        guest_defaults=GuestDefaults(
            machine=settings.default_machine,
            cpu_model=settings.default_cpu_model or BASELINE_CPU[settings.domain_type],
            uefi_code_path=settings.uefi_code,
            uefi_template_path=settings.uefi_variables,
        ),
        remote=RemotePolicy(
            sources=tuple(map(parse_remote_source, settings.instant_boot_sources.split())),
            hydration_mib_s=settings.hydration_mib_s,
            hydration_delay_s=settings.hydration_delay_s,
        ),
        image_limits=CacheLimits(
            max_bytes=settings.image_cache_max_gib * GIB,
            min_free_bytes=settings.image_cache_min_free_gib * GIB,
            min_age_s=settings.image_cache_min_age_s,
            max_age_s=settings.image_max_age_s,
        ),
        scrubber=Scrubber(settings.image_scrub_mib_s * MIB),
        scrub_interval_s=settings.image_scrub_interval_s,
        scrub_slice_s=min(LONGEST_SCRUB_S, settings.image_upkeep_interval_s / 2),
    )


def describe_host(
    settings: Settings, hypervisor: Hypervisor, worker_id: str, *, image_peer_url: str
) -> HostRegistration:
    """Return what this host's row should say."""
    facts = hypervisor.get_facts()
    capacity = {
        name: shutil.disk_usage(pool.path).total // GIB for name, pool in settings.pools.items()
    }
    return HostRegistration(
        name=settings.host_name,
        uuid=get_or_create(settings.state_dir / "host-id"),
        worker_id=worker_id,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        libvirt_version=facts.libvirt_version,
        qemu_version=facts.qemu_version,
        hypervisor_type=facts.hypervisor,
        cpu_model=facts.cpu_model or "unknown",
        facts={
            "libvirt_host_uuid": str(facts.host_uuid),
            "hostname": facts.hostname,
            "image_peer_url": image_peer_url,
        },
        migration_address=settings.migration_address or socket.gethostname(),
        pools={
            name: {
                "shared": pool.shared,
                "total_gib": capacity[name],
                "file_system": get_file_system_id(pool.path),
                **({"id": ensure_pool_id(pool.path)} if pool.shared else {}),
            }
            for name, pool in settings.pools.items()
        },
        vcpus_total=facts.vcpus,
        memory_total_mib=facts.memory_mib,
        disk_total_gib=max(capacity.values(), default=0),
        reserved_vcpus=settings.reserved_vcpus,
        reserved_disk_gib=settings.reserved_disk_gib,
        reserved_memory_mib=settings.reserved_memory_mib,
        cpu_overcommit=settings.cpu_overcommit,
        memory_overcommit=settings.memory_overcommit,
        disk_overcommit=settings.disk_overcommit,
        max_migrations_out=settings.migrations_per_source,
        max_migrations_in=settings.migrations_per_destination,
        max_migrations_per_link=settings.migrations_per_link,
    )
