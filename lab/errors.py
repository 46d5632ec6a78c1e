"""The one error a lab shows to people."""


class LabError(Exception):
    """A lab operation failed; the message says what, where, why and what to try."""


SUPERVISOR_FAILED = 3
"""Exit code of a supervisor that ended by an error and has logged it."""
