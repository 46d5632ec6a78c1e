"""a migration's forecast and what was decided while it ran

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


def downgrade() -> None:
    op.drop_column("migrations", "decisions")
    op.drop_column("migrations", "forecast")
