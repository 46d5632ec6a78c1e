"""The one settings object: frozen, with units in the names, and where each value came from.

Order, last wins: defaults < ``/etc/innkeeper/worker.toml`` < ``INNKEEPER_…`` < command line.
"""

import difflib
import json
import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from innkeeper.event_types import DEFAULT_STREAM
from innkeeper.migration_types import (
    BandwidthMibS,
    Connections,
    DeadlineS,
    DowntimeMs,
    MigrationDefaults,
    OnTimeout,
)
from innkeeper.remote_source import parse_remote_source
from innkeeper.states import Handover
from tasks.fencing_hook import check_command
from tasks.tls_rule import TlsRule

PREFIX = "INNKEEPER_"
IN_JSON = frozenset({"pools", "fencing_hook"})
CONFIG_FILE = Path("/etc/innkeeper/worker.toml")


def _refuse_odd_sources(listed: str) -> str:
    for one in listed.split():
        try:
            parse_remote_source(one)
        except ValueError as error:
            raise ValueError(f"{one.split('?')[0]!r} cannot be a prefix: {error}") from None
    return listed


class PoolSettings(BaseModel):
    """A storage pool of the host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    shared: bool = False
    trusted_coherent: bool = False


class Settings(BaseModel):
    """Every setting of every role; each names its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: Annotated[
        SecretStr, Field(description="SQLAlchemy URL of Postgres, postgresql+psycopg://…")
    ]
    broker_url: Annotated[SecretStr, Field(description="Redis URL of the broker")]
    result_url: Annotated[SecretStr, Field(description="Redis URL of the result backend")]
    host_name: Annotated[
        str, Field(default_factory=socket.gethostname, description="This hypervisor's name")
    ]
    libvirt_uri: Annotated[str, Field(description="Libvirt's connection URI")] = "qemu:///system"
    domain_type: Annotated[
        Literal["qemu", "kvm"], Field(description="qemu for emulation, kvm for hardware")
    ] = "kvm"
    default_machine: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9][a-z0-9.-]*$",
            description="Machine type of guests that name none; pc or q35 is the host's newest",
        ),
    ] = "pc"
    default_cpu_model: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_.-]{0,64}$",
            description="CPU model of guests that name none; empty for Westmere, or QEMU's "
            "own under emulation",
        ),
    ] = ""
    uefi_code: Annotated[Path, Field(description="UEFI firmware without Secure Boot")] = Path(
        "/usr/share/OVMF/OVMF_CODE_4M.fd"
    )
    uefi_variables: Annotated[
        Path, Field(description="The firmware's empty variable store, copied for each guest")
    ] = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    migration_address: Annotated[
        str, Field(description="Address under which other hosts reach this one's libvirt and QEMU")
    ] = ""
    migration_listen_address: Annotated[
        str,
        Field(
            pattern=r"^[0-9A-Za-z:.-]*$",
            description="Address on which QEMU awaits incoming guests; empty for "
            "migration_address where that is an IP address, else what qemu.conf says",
        ),
    ] = ""
    migration_tls: Annotated[
        TlsRule,
        Field(
            description="off: never; allowed: for who asks; required: every migration is encrypted"
        ),
    ] = TlsRule.ALLOWED
    libvirt_tls_dir: Annotated[
        Path, Field(description="Where libvirt's certificates are, in CA/ and libvirt/")
    ] = Path("/etc/pki")
    qemu_tls_dir: Annotated[
        Path, Field(description="QEMU's certificates, migrate_tls_x509_cert_dir of qemu.conf")
    ] = Path("/etc/pki/qemu")
    pools: Annotated[
        dict[str, PoolSettings], Field(description="Storage pools by name; JSON in the environment")
    ] = Field(default_factory=lambda: {"local": PoolSettings(path=Path("/var/lib/innkeeper"))})
    state_dir: Annotated[Path, Field(description="Identity file and console logs")] = Path(
        "/var/lib/innkeeper"
    )
    lock_dir: Annotated[Path, Field(description="Per-guest lock files")] = Path(
        "/run/innkeeper/locks"
    )
    allowed_file_roots: Annotated[
        str, Field(description="Directories that file:// images may come from, ':' between them")
    ] = "/var/lib/innkeeper-images"
    instant_boot_sources: Annotated[
        str,
        Field(
            description="URL prefixes that guests may boot from at once, blanks between them; "
            "none when empty"
        ),
        AfterValidator(_refuse_odd_sources),
    ] = ""
    hydration_mib_s: Annotated[
        int,
        Field(ge=0, description="Cap on fetching a running guest's image, MiB/s; 0 for none"),
    ] = 0
    hydration_delay_s: Annotated[
        float,
        Field(ge=0, description="Seconds a guest boots before its image is fetched meanwhile"),
    ] = 15.0
    max_image_gib: Annotated[int, Field(ge=1, description="Largest image file, GiB")] = 256
    reserved_vcpus: Annotated[
        int, Field(ge=0, description="Physical CPUs kept for the host itself")
    ] = 0
    reserved_disk_gib: Annotated[
        int, Field(ge=0, description="Disk kept free in each pool, GiB")
    ] = 0
    qemu_img_user: Annotated[
        str,
        Field(
            description="User that qemu-img runs as while it reads images, where the worker may"
            " change users; empty for the worker's own"
        ),
    ] = "nobody"
    secret_key_file: Annotated[
        Path | None,
        Field(description="File of private keys that open sealed secrets; mode 0600"),
    ] = None
    image_cache_max_gib: Annotated[
        int, Field(ge=0, description="Quota of each pool's image cache, GiB; 0 for none")
    ] = 0
    image_cache_min_free_gib: Annotated[
        int,
        Field(ge=0, description="Room on a pool's disk for which unused images are removed, GiB"),
    ] = 5
    image_cache_min_age_s: Annotated[
        float,
        Field(ge=0, description="An image used within this time goes only when the disk is full"),
    ] = 3600.0
    image_max_age_s: Annotated[
        float, Field(ge=0, description="An image unused for so long is removed; 0 for never")
    ] = 1_209_600.0
    image_upkeep_interval_s: Annotated[
        float, Field(ge=1, description="Seconds between two upkeeps of the image caches")
    ] = 60.0
    image_scrub_mib_s: Annotated[
        float, Field(ge=0, description="How fast cached images are hashed again, MiB/s; 0: never")
    ] = 20.0
    image_scrub_interval_s: Annotated[
        float, Field(ge=0, description="How often each cached image is hashed again, seconds")
    ] = 604_800.0
    image_peer_port: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="TCP port of migration_address that serves cached images to other hosts,"
            " to anybody who knows a digest; 0: none",
        ),
    ] = 0
    image_peer_connections: Annotated[
        int, Field(ge=1, description="How many images are served to other hosts at once")
    ] = 4
    reserved_memory_mib: Annotated[
        int, Field(ge=0, description="Memory kept for the host itself, MiB")
    ] = 512
    cpu_overcommit: Annotated[float, Field(gt=0, description="vCPUs per physical CPU")] = 4.0
    memory_overcommit: Annotated[float, Field(gt=0, description="Memory over-commit ratio")] = 1.0
    disk_overcommit: Annotated[float, Field(gt=0, description="Disk over-commit ratio")] = 1.0
    migrations_per_source: Annotated[
        int, Field(ge=1, description="How many live migrations may leave this host at once")
    ] = 1
    migrations_per_destination: Annotated[
        int, Field(ge=1, description="How many live migrations may arrive at this host at once")
    ] = 2
    migrations_per_link: Annotated[
        int,
        Field(ge=1, description="How many live migrations may go from this host to one other"),
    ] = 1
    concurrency: Annotated[int, Field(ge=1, description="Threads of a worker")] = 16
    power_sync_interval_s: Annotated[
        float, Field(ge=1, description="Seconds between two power-state syncs")
    ] = 10.0
    sweep_interval_s: Annotated[float, Field(ge=0.5, description="Seconds between two sweeps")] = (
        2.0
    )
    lease_s: Annotated[float, Field(ge=2, description="Length of a step's lease, seconds")] = 15.0
    fencing_hook: Annotated[
        tuple[str, ...],
        Field(
            description="Program with its arguments, JSON in the environment, that ends with 0 "
            "when the host is off; {host} and {address} are put in; read by control"
        ),
        AfterValidator(check_command),
    ] = ()
    fencing_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="How long the fencing hook may take, seconds")
    ] = 60.0
    event_stream: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9:._-]{1,128}$",
            description="Key of the broker's Redis under which events are published; one for all"
            " control and host workers, and for clients that follow events",
        ),
    ] = DEFAULT_STREAM
    event_stream_length: Annotated[
        int, Field(ge=100, description="About how many events the stream in Redis keeps")
    ] = 10_000
    event_max_age_s: Annotated[
        float, Field(ge=0, description="Events older than this are removed; 0 for never")
    ] = 2_592_000.0
    migration_max_downtime_ms: Annotated[
        DowntimeMs | None,
        Field(description="Longest pause at a switch-over, ms, where nobody says otherwise"),
    ] = None
    migration_deadline_s: Annotated[
        DeadlineS | None,
        Field(description="Time of a whole migration, seconds, where nobody says otherwise"),
    ] = None
    migration_on_timeout: Annotated[
        OnTimeout | None,
        Field(description="What becomes of a migration at its deadline"),
    ] = None
    migration_bandwidth_mib_s: Annotated[
        BandwidthMibS | None,
        Field(description="Cap of a migration, MiB/s; 0 for none"),
    ] = None
    migration_auto_converge: Annotated[
        bool | None, Field(description="Whether QEMU may slow guests so that they get across")
    ] = None
    migration_post_copy: Annotated[
        bool | None,
        Field(description="Whether guests may go on before all their memory has crossed"),
    ] = None
    migration_parallel_connections: Annotated[
        Connections | None, Field(description="TCP connections that carry memory side by side")
    ] = None
    migration_handover: Annotated[
        Handover | None, Field(description="Who starts a migrated guest: safe or fast")
    ] = None
    prepared_statements: Annotated[
        bool, Field(description="Keep query plans; false behind a PgBouncer older than 1.21")
    ] = True
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level logged")
    ] = "info"
    log_format: Annotated[
        Literal["json", "console"], Field(description="json for machines, console for people")
    ] = "json"
    ready_file: Annotated[
        Path | None, Field(description="File that is touched once the worker consumes")
    ] = None

    @property
    def migration_defaults(self) -> MigrationDefaults:
        """What holds for migrations where neither the request nor the guest says anything."""
        names = MigrationDefaults.model_fields
        given = {name: getattr(self, f"migration_{name}") for name in names if name != "tls"}
        # The other rules leave it to the request.
        given["tls"] = True if self.migration_tls is TlsRule.REQUIRED else None
        return MigrationDefaults(**{k: v for k, v in given.items() if v is not None})


class SettingsError(Exception):
    """The settings are wrong; the message names each one, its source and the remedy."""


# Variables that belong to the client, the lab and the tests.
FOREIGN = (
    "INNKEEPER_LAB_",
    "INNKEEPER_CRASH_",
    "INNKEEPER_FLOWER_URL",
    "INNKEEPER_PUBLIC_KEY",
    "INNKEEPER_TEST_",
)


def load_settings(
    environ: Mapping[str, str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    config_file: Path = CONFIG_FILE,
) -> tuple[Settings, dict[str, str]]:
    """Merge all layers.

    Args:
        environ: the environment; the process's own by default.
        overrides: values from the command line; None means not given.
        config_file: a TOML file, which may be absent.

    Returns:
        The settings, and for each name the layer it came from.

    Raises:
        SettingsError: unknown names, wrong values, missing ones; all of them at once.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems: list[str] = []

    def take(name: str, value: Any, source: str) -> None:
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{source}: unknown setting {name!r}{hint}")
            return
        values[name], origin[name] = value, source

    if config_file.exists():
        for name, value in tomllib.loads(config_file.read_text()).items():
            take(name, value, str(config_file))
    for key, raw in environ.items():
        if key.startswith(PREFIX) and not key.startswith(FOREIGN):
            name = key.removeprefix(PREFIX).lower()
            take(name, _parse(name, raw), key)
    for name, value in (overrides or {}).items():
        if value is not None:
            take(name, value, "command line")
    try:
        settings = Settings(**values)
    except (ValidationError, TypeError) as exc:
        raise SettingsError("\n".join([*problems, *_describe(exc, origin)])) from None
    if problems:
        raise SettingsError("\n".join(problems))
    return settings, {name: origin.get(name, "default") for name in Settings.model_fields}


def _parse(name: str, raw: str) -> Any:
    if name not in IN_JSON:
        return raw
    try:
        return json.loads(raw)
    except json.JSONDecodeError:
        return raw


def _describe(exc: Exception, origin: Mapping[str, str]) -> list[str]:
    if not isinstance(exc, ValidationError):
        return [str(exc)]
    lines = []
    for error in exc.errors(include_input=False, include_url=False):
        name = str(error["loc"][0])
        where = origin.get(name, f"set {PREFIX}{name.upper()}")
        lines.append(f"{name} ({where}): {error['msg']}")
    return lines
