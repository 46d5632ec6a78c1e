"""What an evacuation would do, told before anything is done."""

from sqlalchemy.orm import Session

from innkeeper.evacuation_types import EvacuationGuest, EvacuationPlan
from models.fencing import get_vitals, list_residents
from models.host import Host
from tasks.evacuation_choice import foresee
from tasks.fencing import Proof, judge


def plan_evacuation(session: Session, host: str, *, has_hook: bool) -> EvacuationPlan:
    """Return the proof of death that there would be, and what would become of each guest.

    Args:
        session: an open transaction, of which nothing is kept.
        host: the host.
        has_hook: whether a fencing hook is configured.

    Raises:
        NotFound: there is no such host.
    """
    vitals = get_vitals(session, host)
    judgement = judge(vitals, host=host, has_hook=has_hook, is_confirmed=False)
    proof, message = judgement.proof.value, judgement.message
    if judgement.proof is Proof.NONE:
        would = judge(vitals, host=host, has_hook=has_hook, is_confirmed=True)
        if would.proof is Proof.OVERRIDE:
            proof = "override_possible"
        else:
            message = would.message
    pools = session.get_one(Host, host).pools
    guests = [
        EvacuationGuest.model_validate(foresee(session, guest, host=host, pools=pools))
        for guest in list_residents(session, host)
    ]
    return EvacuationPlan(
        host=host, heard_s=vitals.heard_s, proof=proof, message=message, guests=guests
    )
