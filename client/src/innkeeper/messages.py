"""The base of every message, and the names that stand in several of them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
HostName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
PoolName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha512 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Request(BaseModel):
    """Base of what a caller sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class View(BaseModel):
    """Base of what Innkeeper answers."""

    model_config = ConfigDict(extra="ignore", frozen=True)
