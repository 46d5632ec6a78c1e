"""Every table in one place, for alembic and for tests."""

from models.base import Base
from models.disk import Disk
from models.event import Event, EventRelay
from models.fencing import Evacuation, Fencing
from models.host import Claim, Host
from models.image import CachedImage, Image
from models.instance import Instance
from models.operation import Migration, Operation, OperationAlias, Step
from models.refusal import Refusal
from models.server_group import ServerGroup

metadata = Base.metadata

__all__ = [
    "Base",
    "CachedImage",
    "Claim",
    "Disk",
    "Evacuation",
    "Event",
    "EventRelay",
    "Fencing",
    "Host",
    "Image",
    "Instance",
    "Migration",
    "Operation",
    "OperationAlias",
    "Refusal",
    "ServerGroup",
    "Step",
    "metadata",
]
