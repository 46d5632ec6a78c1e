"""first schema

Revision ID: 0001
Revises:

Compatibility: the first schema; there is no previous release.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=True),
        sa.Column("boot_id", sa.String(), nullable=True),
        sa.Column("libvirt_version", sa.String(), nullable=True),
        sa.Column("qemu_version", sa.String(), nullable=True),
        sa.Column("hypervisor_type", sa.String(), nullable=True),
        sa.Column("cpu_model", sa.String(), nullable=True),
        sa.Column(
            "facts",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("migration_address", sa.String(), nullable=True),
        sa.Column(
            "pools",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("vcpus_total", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("memory_total_mib", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("disk_total_gib", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reserved_memory_mib", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cpu_overcommit", sa.Double(), server_default=sa.text("1"), nullable=False),
        sa.Column("memory_overcommit", sa.Double(), server_default=sa.text("1"), nullable=False),
        sa.Column("disk_overcommit", sa.Double(), server_default=sa.text("1"), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("disabled_kind", sa.String(), nullable=True),
        sa.Column("disabled_by", sa.String(), nullable=True),
        sa.Column("disabled_reason", sa.String(), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("power_synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fenced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "disabled_kind IN ('auto', 'operator')", name=op.f("ck_hosts_disabled_kind")
        ),
        sa.CheckConstraint(
            "is_enabled = (disabled_kind IS NULL)", name=op.f("ck_hosts_enabled_has_no_disabler")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hosts")),
        sa.UniqueConstraint("uuid", name=op.f("uq_hosts_uuid")),
    )
    op.create_table(
        "images",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("virtual_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_images")),
    )
    op.create_table(
        "cached_images",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column(
            "last_used_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_cached_images_host_hosts")),
        sa.ForeignKeyConstraint(
            ["sha256"], ["images.sha256"], name=op.f("fk_cached_images_sha256_images")
        ),
        sa.PrimaryKeyConstraint("host", "pool", "sha256", name=op.f("pk_cached_images")),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("host", sa.String(), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "building",
                "active",
                "paused",
                "suspended",
                "stopped",
                "rescued",
                "resized",
                "soft_deleted",
                "deleted",
                "error",
                "unknown",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column(
            "power_state",
            sa.Enum(
                "nostate",
                "running",
                "paused",
                "shutdown",
                "crashed",
                "suspended",
                name="power_state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            server_default="nostate",
            nullable=False,
        ),
        sa.Column("power_observed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("domain_epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("domain_xml", sa.String(), nullable=True),
        sa.Column("domain_xml_sha256", sa.String(), nullable=True),
        sa.Column(
            "guest_abi",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "boot_stage",
            sa.Enum(
                "defined",
                "running",
                "console",
                "agent",
                name="boot_stage",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=True,
        ),
        sa.Column("image_sha256", sa.String(), nullable=True),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
        sa.Column("fault", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(state = 'deleted') = (deleted_at IS NOT NULL)", name=op.f("ck_instances_deleted_at")
        ),
        sa.CheckConstraint(
            "state NOT IN ('active', 'paused', 'suspended', 'stopped') OR host IS NOT NULL",
            name=op.f("ck_instances_placed_when_real"),
        ),
        sa.CheckConstraint(
            "epoch >= 0 AND domain_epoch <= epoch", name=op.f("ck_instances_epoch_order")
        ),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_instances_host_hosts")),
        sa.ForeignKeyConstraint(
            ["image_sha256"], ["images.sha256"], name=op.f("fk_instances_image_sha256_images")
        ),
        sa.ForeignKeyConstraint(
            ["operation_id"],
            ["operations.id"],
            name=op.f("fk_instances_operation_id_operations"),
            use_alter=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
    )
    op.create_index("ix_instances_host_state", "instances", ["host", "state"], unique=False)
    op.create_index(op.f("ix_instances_operation_id"), "instances", ["operation_id"], unique=False)
    op.create_index(
        "uq_instances_living_name",
        "instances",
        ["name"],
        unique=True,
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "undoing",
                "succeeded",
                "failed",
                "cancelled",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            server_default="queued",
            nullable=False,
        ),
        sa.Column("instance_id", sa.Uuid(), nullable=True),
        sa.Column("src_host", sa.String(), nullable=True),
        sa.Column("dst_host", sa.String(), nullable=True),
        sa.Column(
            "params",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("request_digest", sa.String(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("requested_by", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("state_before", sa.String(), nullable=True),
        sa.Column("is_committed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False
        ),
        sa.Column("cancel_requested_by", sa.String(), nullable=True),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "progress",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "refusals",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'"),
            nullable=False,
        ),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome_published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(state IN ('failed', 'cancelled')) <= (error IS NOT NULL)",
            name=op.f("ck_operations_failure_has_error"),
        ),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("ck_operations_final_has_end"),
        ),
        sa.ForeignKeyConstraint(
            ["dst_host"], ["hosts.name"], name=op.f("fk_operations_dst_host_hosts")
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instances.id"], name=op.f("fk_operations_instance_id_instances")
        ),
        sa.ForeignKeyConstraint(
            ["src_host"], ["hosts.name"], name=op.f("fk_operations_src_host_hosts")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_operations_idempotency_key")),
    )
    op.create_index("ix_operations_created_at", "operations", ["created_at"], unique=False)
    op.create_index(op.f("ix_operations_instance_id"), "operations", ["instance_id"], unique=False)
    op.create_index(
        "ix_operations_live",
        "operations",
        ["state"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'running', 'undoing')"),
    )
    op.create_index(
        "uq_operations_live_instance",
        "operations",
        ["instance_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('queued', 'running', 'undoing')"),
    )
    op.create_table(
        "claims",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "vcpus > 0 AND memory_mib > 0 AND disk_gib >= 0", name=op.f("ck_claims_positive")
        ),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_claims_host_hosts")),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instances.id"], name=op.f("fk_claims_instance_id_instances")
        ),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.id"], name=op.f("fk_claims_operation_id_operations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_claims")),
        sa.UniqueConstraint("instance_id", "host", name=op.f("uq_claims_instance_id_host")),
    )
    op.create_index(op.f("ix_claims_host"), "claims", ["host"], unique=False)
    op.create_index(op.f("ix_claims_instance_id"), "claims", ["instance_id"], unique=False)
    op.create_index(op.f("ix_claims_operation_id"), "claims", ["operation_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=True),
        sa.Column("operation_id", sa.Uuid(), nullable=True),
        sa.Column("host", sa.String(), nullable=True),
        sa.Column(
            "data",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instances.id"], name=op.f("fk_events_instance_id_instances")
        ),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.id"], name=op.f("fk_events_operation_id_operations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_at"), "events", ["at"], unique=False)
    op.create_index(op.f("ix_events_instance_id"), "events", ["instance_id"], unique=False)
    op.create_index(op.f("ix_events_operation_id"), "events", ["operation_id"], unique=False)
    op.create_table(
        "migrations",
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("src_host", sa.String(), nullable=False),
        sa.Column("dst_host", sa.String(), nullable=False),
        sa.Column("storage", sa.String(), nullable=True),
        sa.Column("handover", sa.String(), nullable=True),
        sa.Column("phase", sa.String(), server_default=sa.text("'accepted'"), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("total_ms", sa.Double(), nullable=True),
        sa.Column("downtime_ms", sa.Double(), nullable=True),
        sa.Column(
            "stats",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "outcome IN ('completed', 'failed', 'cancelled')", name=op.f("ck_migrations_outcome")
        ),
        sa.ForeignKeyConstraint(
            ["dst_host"], ["hosts.name"], name=op.f("fk_migrations_dst_host_hosts")
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instances.id"], name=op.f("fk_migrations_instance_id_instances")
        ),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.id"], name=op.f("fk_migrations_operation_id_operations")
        ),
        sa.ForeignKeyConstraint(
            ["src_host"], ["hosts.name"], name=op.f("fk_migrations_src_host_hosts")
        ),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_migrations")),
    )
    op.create_index(op.f("ix_migrations_instance_id"), "migrations", ["instance_id"], unique=False)
    op.create_table(
        "operation_aliases",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["operation_id"],
            ["operations.id"],
            name=op.f("fk_operation_aliases_operation_id_operations"),
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_operation_aliases")),
    )
    op.create_index(
        op.f("ix_operation_aliases_operation_id"),
        "operation_aliases",
        ["operation_id"],
        unique=False,
    )
    op.create_table(
        "steps",
        sa.Column("operation_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "done",
                "failed",
                "skipped",
                "undo",
                "undoing",
                "undone",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            server_default="queued",
            nullable=False,
        ),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "not_before",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("waiting_for", sa.String(), nullable=True),
        sa.Column("rung_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rings", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "detail",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "undo",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "log",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(state IN ('running', 'undoing')) = "
            "(owner IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name=op.f("ck_steps_running_has_lease"),
        ),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_steps_host_hosts")),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.id"], name=op.f("fk_steps_operation_id_operations")
        ),
        sa.PrimaryKeyConstraint("operation_id", "position", name=op.f("pk_steps")),
    )
    op.create_index(
        "ix_steps_owner",
        "steps",
        ["owner"],
        unique=False,
        postgresql_where=sa.text("state IN ('running', 'undoing')"),
    )
    op.create_index(
        "ix_steps_unfinished",
        "steps",
        ["state", "not_before"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'running', 'undo', 'undoing')"),
    )
    op.create_foreign_key(
        "fk_instances_operation_id_operations",
        "instances",
        "operations",
        ["operation_id"],
        ["id"],
    )


def downgrade() -> None:
    op.drop_constraint("fk_instances_operation_id_operations", "instances", type_="foreignkey")
    op.drop_index(
        "ix_steps_unfinished",
        table_name="steps",
        postgresql_where=sa.text("state IN ('queued', 'running', 'undo', 'undoing')"),
    )
    op.drop_index(
        "ix_steps_owner",
        table_name="steps",
        postgresql_where=sa.text("state IN ('running', 'undoing')"),
    )
    op.drop_table("steps")
    op.drop_index(op.f("ix_operation_aliases_operation_id"), table_name="operation_aliases")
    op.drop_table("operation_aliases")
    op.drop_index(op.f("ix_migrations_instance_id"), table_name="migrations")
    op.drop_table("migrations")
    op.drop_index(op.f("ix_events_operation_id"), table_name="events")
    op.drop_index(op.f("ix_events_instance_id"), table_name="events")
    op.drop_index(op.f("ix_events_at"), table_name="events")
    op.drop_table("events")
    op.drop_index(op.f("ix_claims_operation_id"), table_name="claims")
    op.drop_index(op.f("ix_claims_instance_id"), table_name="claims")
    op.drop_index(op.f("ix_claims_host"), table_name="claims")
    op.drop_table("claims")
    op.drop_index(
        "uq_operations_live_instance",
        table_name="operations",
        postgresql_where=sa.text("state IN ('queued', 'running', 'undoing')"),
    )
    op.drop_index(
        "ix_operations_live",
        table_name="operations",
        postgresql_where=sa.text("state IN ('queued', 'running', 'undoing')"),
    )
    op.drop_index(op.f("ix_operations_instance_id"), table_name="operations")
    op.drop_index("ix_operations_created_at", table_name="operations")
    op.drop_table("operations")
    op.drop_index(
        "uq_instances_living_name",
        table_name="instances",
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.drop_index(op.f("ix_instances_operation_id"), table_name="instances")
    op.drop_index("ix_instances_host_state", table_name="instances")
    op.drop_table("instances")
    op.drop_table("cached_images")
    op.drop_table("images")
    op.drop_table("hosts")
