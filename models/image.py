"""Images by digest, and where they are cached."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Timestamps


class Image(Timestamps, Base):
    """An image file, known by the digest of its bytes."""

    __tablename__ = "images"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    format: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    virtual_size_bytes: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[str]


class CachedImage(Timestamps, Base):
    """One copy of an image in a pool of a host."""

    __tablename__ = "cached_images"

    host: Mapped[str] = mapped_column(ForeignKey("hosts.name"), primary_key=True)
    pool: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"), primary_key=True)
    path: Mapped[str]
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())
