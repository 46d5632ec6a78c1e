"""What operations that did not succeed write into the guest's record."""

from sqlalchemy.orm import Session

from innkeeper.states import InstanceState
from models.instance import Instance
from models.operation import Operation


def keep_state(session: Session, operation: Operation) -> None:
    """Leave the guest's state as it was; the next look at the host corrects it if need be."""
    del session, operation


def mark_unknown(session: Session, operation: Operation) -> None:
    """Write that nobody can tell at the moment what of the guest is there, and where."""
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    instance.state = InstanceState.UNKNOWN
    instance.fault = operation.error
