"""The Deepgram key: where it comes from, and that it does not show."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from gateway.config import CallbackConfig, Config, DeepgramConfig
from gateway.config.secrets import Secret, api_key, callback_secrets, secret
from gateway.errors import ConfigError


def test_a_secret_does_not_show() -> None:
    """No way of printing a secret shows it."""
    value = Secret("abc123")
    assert value.reveal() == "abc123"
    assert "abc123" not in f"{value} {value!r} {[value]} {vars(type(value))}"


def test_order_of_places(tmp_path: Path) -> None:
    """The file that settings name comes first, then systemd's credential, then the variable."""
    (tmp_path / "deepgram_api_key").write_text("from-systemd\n")
    (tmp_path / "file").write_text("  from-file\n")
    everything = {"CREDENTIALS_DIRECTORY": str(tmp_path), "DEEPGRAM_API_KEY": "from-env"}
    named = Config(deepgram=DeepgramConfig(api_key_file=str(tmp_path / "file")))

    def found(config: Config, env: dict[str, str]) -> str | None:
        key = api_key(config, env)
        return key.reveal() if key else None

    assert found(named, everything) == "from-file"
    assert found(Config(), everything) == "from-systemd"
    assert found(Config(), {**everything, "CREDENTIALS_DIRECTORY": "/nonexistent"}) == "from-env"
    assert found(Config(), {"DEEPGRAM_API_KEY": ""}) is None


@pytest.mark.parametrize("text", ["abc def", "abc\ndef", "abc\x00", "ключ", "abc\x1b[2J"])
def test_unusable_keys(text: str) -> None:
    """A key that no header can carry is refused without being repeated."""
    with pytest.raises(ConfigError) as caught:
        secret(text, "DEEPGRAM_API_KEY")
    assert str(caught.value).startswith("DEEPGRAM_API_KEY: ")
    assert text not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    """A key file that cannot be read is one line with its name."""
    config = Config(deepgram=DeepgramConfig(api_key_file=str(tmp_path)))
    with pytest.raises(ConfigError, match="Is a directory"):
        api_key(config, {})


NEW, OLD = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))


def test_what_signs_callbacks(tmp_path: Path) -> None:
    """security.md S43: two secrets may be in use, the newest first; the file goes before the credential."""
    (tmp_path / "file").write_text(f"{NEW}\n{OLD}\n")
    (tmp_path / "callback_secrets").write_text(f"{OLD}\n")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    named = Config(callback=CallbackConfig(secrets_file=str(tmp_path / "file")))
    assert [one.reveal() for one in callback_secrets(named, env)] == [NEW, OLD]
    assert [one.reveal() for one in callback_secrets(Config(), env)] == [OLD]
    assert callback_secrets(Config(), {}) == []
    assert callback_secrets(Config(), {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}) == []


SHORT, LONG = (f"whsec_{base64.b64encode(bytes(n)).decode()}" for n in (23, 65))


@pytest.mark.parametrize("text", [NEW[6:], f"{NEW}!", f"{NEW} {NEW} {OLD}", SHORT, LONG, "whsec_ключ"])
def test_secrets_that_sign_nothing(tmp_path: Path, text: str) -> None:
    """Too many, too short, not in the form that receivers' libraries take; none is repeated."""
    (tmp_path / "file").write_text(text)
    config = Config(callback=CallbackConfig(secrets_file=str(tmp_path / "file")))
    with pytest.raises(ConfigError, match=r"^callback\.secrets_file: ") as told:
        callback_secrets(config, {})
    assert text not in str(told.value)
