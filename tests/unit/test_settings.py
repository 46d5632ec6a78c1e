"""Settings: where each comes from, and what is said of wrong ones."""

from pathlib import Path

import pytest

from workers.settings import SettingsError, load_settings

URLS = {
    "INNKEEPER_DATABASE_URL": "postgresql+psycopg://u:secret@db/innkeeper",
    "INNKEEPER_BROKER_URL": "redis://r/0",
    "INNKEEPER_RESULT_URL": "redis://r/1",
}


def test_later_layers_win_and_their_origin_is_known(tmp_path: Path) -> None:
    config = tmp_path / "worker.toml"
    config.write_text('concurrency = 4\nlease_s = 20\nhost_name = "file"\n')
    settings, origin = load_settings(
        {**URLS, "INNKEEPER_LEASE_S": "30", "INNKEEPER_HOST_NAME": "env"},
        overrides={"host_name": "line", "libvirt_uri": None},
        config_file=config,
    )
    assert (settings.concurrency, settings.lease_s, settings.host_name) == (4, 30, "line")
    assert origin["concurrency"] == str(config)
    assert origin["lease_s"] == "INNKEEPER_LEASE_S"
    assert origin["host_name"] == "command line"
    assert origin["libvirt_uri"] == "default"


def test_all_problems_are_told_at_once_with_a_guess_at_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(
            {"INNKEEPER_CONCURENCY": "4", "INNKEEPER_LEASE_S": "no"}, config_file=tmp_path / "none"
        )
    message = str(caught.value)
    assert "did you mean concurrency?" in message
    assert "lease_s (INNKEEPER_LEASE_S)" in message
    assert "set INNKEEPER_DATABASE_URL" in message


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    settings, _ = load_settings(URLS, config_file=tmp_path / "none")
    assert "secret" not in repr(settings).replace("secret_key_file", "")
    assert "secret" in settings.database_url.get_secret_value()
