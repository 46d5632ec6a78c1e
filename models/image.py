"""Images by digest, and where they are cached."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Timestamps


class Image(Timestamps, Base):
    """An image file, known by the digest of its bytes."""

    __tablename__ = "images"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    sha512: Mapped[str | None]
    format: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    virtual_size_bytes: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[str]


class CachedImage(Timestamps, Base):
    """One copy of an image in a pool of a host.

    ``rotten`` is a copy whose bytes were found to differ from its digest; nothing new uses it.
    """

    __tablename__ = "cached_images"
    __table_args__ = (CheckConstraint("state IN ('ready', 'rotten')", name="state"),)

    host: Mapped[str] = mapped_column(ForeignKey("hosts.name"), primary_key=True)
    pool: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"), primary_key=True)
    path: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'ready'"))
    size_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())
    verified_at: Mapped[datetime | None]
