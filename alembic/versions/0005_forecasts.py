"""a migration's forecast and decisions; operations that are parts of others

Revision ID: 0005
Revises: 0004

Compatibility: additive; a worker of the previous release ignores the columns.
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


def downgrade() -> None:
    op.drop_index("ix_operations_parent_id", "operations")
    op.drop_column("operations", "parent_id")
    op.drop_column("migrations", "decisions")
    op.drop_column("migrations", "forecast")
