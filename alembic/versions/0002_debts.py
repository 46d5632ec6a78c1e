"""an ended operation may owe steps to a host that was away

Revision ID: 0002
Revises: 0001

Compatibility: additive; a worker of the previous release ignores the column, and leaves what is
owed to a worker of this one.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operations", sa.Column("owes_since", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_operations_owing",
        "operations",
        ["instance_id"],
        postgresql_where=sa.text("owes_since IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_operations_owing", table_name="operations")
    op.drop_column("operations", "owes_since")
