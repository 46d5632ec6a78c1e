"""Whether a migration is encrypted: rule against wish."""

import pytest

from innkeeper.errors import InvalidRequest
from tasks.tls_rule import TlsRule, decide_tls


@pytest.mark.parametrize(
    ("rule", "wish", "expected"),
    [
        ("off", None, False),
        ("off", False, False),
        ("off", True, None),
        ("allowed", None, False),
        ("allowed", False, False),
        ("allowed", True, True),
        ("required", None, True),
        ("required", False, None),
        ("required", True, True),
    ],
)
def test_the_rule_and_the_wish(rule: str, wish: bool | None, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(InvalidRequest) as refused:
            decide_tls(TlsRule(rule), wish)
        assert refused.value.details["problems"][0]["path"] == "policy.tls"
        assert "migration_tls" in refused.value.hint
    else:
        assert decide_tls(TlsRule(rule), wish) is expected
