"""disks, server groups, the pool of a claim, the state of cached images, and one more boot stage

Revision ID: 0003
Revises: 0002

Compatibility: additive; a worker of the previous release ignores the tables and columns. It does
not know the boot stage ``cloud_init``, which stands only in guests whose spawn asked for it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NOW = sa.text("now()")


def _timestamps() -> tuple[sa.Column, sa.Column]:
    return tuple(
        sa.Column(name, sa.DateTime(timezone=True), server_default=NOW, nullable=False)
        for name in ("created_at", "updated_at")
    )


def _set_boot_stages(*stages: str) -> None:
    name = op.f("ck_instances_boot_stage")
    op.drop_constraint(name, "instances", type_="check")
    listed = ", ".join(f"'{stage}'" for stage in stages)
    op.create_check_constraint(name, "instances", f"boot_stage IN ({listed})")


def upgrade() -> None:
    op.create_table(
        "server_groups",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        *_timestamps(),
        sa.CheckConstraint(
            "policy IN ('affinity', 'anti_affinity', 'soft_affinity', 'soft_anti_affinity')",
            name=op.f("ck_server_groups_policy"),
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_server_groups")),
    )
    op.create_table(
        "disks",
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("bus", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("serial", sa.String(), nullable=True),
        sa.Column("backing_sha256", sa.String(), nullable=True),
        sa.Column("backing_format", sa.String(), nullable=True),
        sa.Column("remote_url", sa.String(), nullable=True),
        sa.Column("hydrated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "facts",
            postgresql.JSONB(none_as_null=True),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        *_timestamps(),
        sa.CheckConstraint(
            "kind IN ('root', 'ephemeral', 'swap', 'data', 'config_drive')",
            name=op.f("ck_disks_kind"),
        ),
        sa.CheckConstraint("format IN ('qcow2', 'raw')", name=op.f("ck_disks_format")),
        sa.CheckConstraint("size_bytes > 0", name=op.f("ck_disks_size")),
        sa.CheckConstraint("position(chr(47) IN file) = 0", name=op.f("ck_disks_file_is_a_name")),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instances.id"], name=op.f("fk_disks_instance_id_instances")
        ),
        sa.ForeignKeyConstraint(
            ["backing_sha256"], ["images.sha256"], name=op.f("fk_disks_backing_sha256_images")
        ),
        sa.PrimaryKeyConstraint("instance_id", "target", name=op.f("pk_disks")),
    )
    op.create_index(op.f("ix_disks_backing_sha256"), "disks", ["backing_sha256"])
    op.create_index(
        "ix_disks_remote",
        "disks",
        ["instance_id"],
        postgresql_where=sa.text("remote_url IS NOT NULL"),
    )
    op.add_column("instances", sa.Column("group_name", sa.String(), nullable=True))
    op.create_foreign_key(
        op.f("fk_instances_group_name_server_groups"),
        "instances",
        "server_groups",
        ["group_name"],
        ["name"],
    )
    op.create_index(op.f("ix_instances_group_name"), "instances", ["group_name"])
    for column in ("reserved_vcpus", "reserved_disk_gib"):
        op.add_column(
            "hosts", sa.Column(column, sa.Integer(), server_default=sa.text("0"), nullable=False)
        )
    op.add_column(
        "claims", sa.Column("pool", sa.String(), server_default=sa.text("'local'"), nullable=False)
    )
    op.execute("UPDATE claims c SET pool = i.pool FROM instances i WHERE i.id = c.instance_id")
    _set_boot_stages("defined", "running", "console", "agent", "cloud_init")
    op.add_column("images", sa.Column("sha512", sa.String(), nullable=True))
    op.add_column(
        "cached_images",
        sa.Column("state", sa.String(), server_default=sa.text("'ready'"), nullable=False),
    )
    op.create_check_constraint(
        op.f("ck_cached_images_state"), "cached_images", "state IN ('ready', 'rotten')"
    )
    op.add_column(
        "cached_images",
        sa.Column("size_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column(
        "cached_images", sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True)
    )


def downgrade() -> None:
    for column in ("verified_at", "size_bytes", "state"):
        op.drop_column("cached_images", column)
    op.drop_column("images", "sha512")
    op.execute("UPDATE instances SET boot_stage = 'agent' WHERE boot_stage = 'cloud_init'")
    _set_boot_stages("defined", "running", "console", "agent")
    op.drop_column("claims", "pool")
    op.drop_column("hosts", "reserved_disk_gib")
    op.drop_column("hosts", "reserved_vcpus")
    op.drop_column("instances", "group_name")
    op.drop_table("disks")
    op.drop_table("server_groups")
