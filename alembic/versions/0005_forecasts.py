"""a migration's forecast and decisions; parts of operations; fenced hosts

Revision ID: 0005
Revises: 0004

Compatibility: additive; a worker of the previous release ignores it. Such a worker does not look
whether its host was fenced: evacuate only once all host workers are of this release.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = postgresql.JSONB(none_as_null=True)
    op.add_column("migrations", sa.Column("forecast", json, nullable=True))
    op.add_column(
        "migrations",
        sa.Column("decisions", json, server_default=sa.text("'[]'"), nullable=False),
    )
    op.add_column(
        "operations",
        sa.Column(
            "parent_id",
            sa.Uuid(),
            sa.ForeignKey("operations.id", name="fk_operations_parent_id_operations"),
            nullable=True,
        ),
    )
    op.create_index("ix_operations_parent_id", "operations", ["parent_id"])
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "fencings",
        sa.Column("operation_id", sa.Uuid(), sa.ForeignKey("operations.id"), nullable=False),
        sa.Column("host", sa.String(), sa.ForeignKey("hosts.name"), nullable=False),
        sa.Column("proof", sa.String(), nullable=False),
        sa.Column("hook", sa.String(), nullable=True),
        sa.Column("output", sa.String(), nullable=True),
        sa.Column("requested_by", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("fenced_at", moment, nullable=False),
        sa.Column("returned_at", moment, nullable=True),
        sa.Column("cleaned_at", moment, nullable=True),
        sa.CheckConstraint("proof IN ('hook', 'override')", name=op.f("ck_fencings_proof")),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_fencings")),
    )
    op.create_index(op.f("ix_fencings_host"), "fencings", ["host"])
    op.create_table(
        "evacuations",
        sa.Column("operation_id", sa.Uuid(), sa.ForeignKey("operations.id"), nullable=False),
        sa.Column("fencing_id", sa.Uuid(), sa.ForeignKey("fencings.operation_id"), nullable=False),
        sa.Column("instance_id", sa.Uuid(), sa.ForeignKey("instances.id"), nullable=False),
        sa.Column("src_host", sa.String(), sa.ForeignKey("hosts.name"), nullable=False),
        sa.Column("dst_host", sa.String(), sa.ForeignKey("hosts.name"), nullable=False),
        sa.Column("domain_epoch", sa.Integer(), nullable=False),
        sa.Column("cleaned_at", moment, nullable=True),
        sa.Column("created_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_evacuations")),
    )
    for column in ("fencing_id", "instance_id", "src_host"):
        op.create_index(op.f(f"ix_evacuations_{column}"), "evacuations", [column])


def downgrade() -> None:
    op.drop_table("evacuations")
    op.drop_table("fencings")
    op.drop_index("ix_operations_parent_id", "operations")
    op.drop_column("operations", "parent_id")
    op.drop_column("migrations", "decisions")
    op.drop_column("migrations", "forecast")
