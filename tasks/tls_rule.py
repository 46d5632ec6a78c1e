"""Whether a migration is encrypted: what the settings rule and what the caller wishes. Pure."""

from enum import StrEnum

from innkeeper.errors import InvalidRequest


class TlsRule(StrEnum):
    """What the setting ``migration_tls`` says.

    ``off``: there are no certificates; ``allowed``: who asks for TLS gets it; ``required``: every
    migration is encrypted.
    """

    OFF = "off"
    ALLOWED = "allowed"
    REQUIRED = "required"


def decide_tls(rule: TlsRule, wish: bool | None) -> bool:
    """Return whether a migration uses TLS.

    Args:
        rule: the setting.
        wish: ``MigrationPolicy.tls``; None leaves it to the setting.

    Raises:
        InvalidRequest: the wish is against the rule.
    """
    if wish is False and rule is TlsRule.REQUIRED:
        raise _refusal(
            "migrations without TLS are refused here",
            "Leave tls out, or ask for it; the setting migration_tls is required.",
        )
    if wish is True and rule is TlsRule.OFF:
        raise _refusal(
            "TLS is off here",
            "Give the hosts certificates and set migration_tls to allowed or required.",
        )
    return rule is TlsRule.REQUIRED if wish is None else wish


def _refusal(message: str, hint: str) -> InvalidRequest:
    return InvalidRequest(
        f"The request is not valid (policy.tls: {message}).",
        {"problems": [{"path": "policy.tls", "message": message}], "hint": hint},
    )
