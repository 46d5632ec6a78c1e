"""The checks of a live migration: what is looked at before anything is touched.

Each check is a small function that yields its failures, each with its code and a hint. Those of one
host are made together, and those of both are reported together. A check only looks.
"""

from tasks.failed_check import Failure, failure
from tasks.migration_checks.check import list_failures, run_checks
from tasks.migration_checks.move import Move, get_dst_address, move_of
from tasks.migration_checks.on_destination import CHECKS_ON_DESTINATION, check_machine
from tasks.migration_checks.on_source import CHECKS_OF_GUEST, CHECKS_ON_SOURCE
from tasks.migration_checks.survey import tell_of_guest

__all__ = [
    "CHECKS_OF_GUEST",
    "CHECKS_ON_DESTINATION",
    "CHECKS_ON_SOURCE",
    "Failure",
    "Move",
    "check_machine",
    "failure",
    "get_dst_address",
    "list_failures",
    "move_of",
    "run_checks",
    "tell_of_guest",
]
