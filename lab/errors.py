"""The one error a lab shows to people."""


class LabError(Exception):
    """A lab operation failed; the message says what, where, why and what to try."""
