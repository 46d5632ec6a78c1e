"""Server groups: guests that must be together, or apart."""

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Timestamps


class ServerGroup(Timestamps, Base):
    """A group of guests with one rule about their hosts; made by its first member."""

    __tablename__ = "server_groups"
    __table_args__ = (
        CheckConstraint(
            "policy IN ('affinity', 'anti_affinity', 'soft_affinity', 'soft_anti_affinity')",
            name="policy",
        ),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    policy: Mapped[str]
