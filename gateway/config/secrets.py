"""Secrets: a string that does not print itself, and where the gateway's Deepgram key comes from."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.config.tree import Config
from gateway.errors import ConfigError

MOST_SECRETS: Final = 2
"""That sign callbacks at once: the one in use, and the one before it."""


class Secret:
    """A string that shows itself to nobody who does not call `reveal()`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"


def api_key(config: Config, env: Mapping[str, str]) -> Secret | None:
    """The gateway's Deepgram key, or None; raises `ConfigError` for one that no header can carry.

    Looked for in `deepgram.api_key_file`, the systemd credential deepgram_api_key, `DEEPGRAM_API_KEY`.
    """
    if file := config.deepgram.api_key_file:
        return secret(read_text(file), f"deepgram.api_key_file {file}")
    if credentials := env.get("CREDENTIALS_DIRECTORY"):
        credential = Path(credentials, "deepgram_api_key")
        if credential.exists():
            return secret(read_text(str(credential)), "credential deepgram_api_key")
    return secret(env.get("DEEPGRAM_API_KEY", ""), "DEEPGRAM_API_KEY")


def callback_secrets(config: Config, env: Mapping[str, str]) -> list[Secret]:
    """What signs callbacks, the newest first, each as `whsec_` and base64; none where none is set.

    Looked for in `callback.secrets_file`, the systemd credential callback_secrets. Raises `ConfigError`.
    """
    source, text = "callback.secrets_file", ""
    if file := config.callback.secrets_file:
        text = read_text(file)
    elif credentials := env.get("CREDENTIALS_DIRECTORY"):
        source, path = "credential callback_secrets", Path(credentials, "callback_secrets")
        text = read_text(str(path)) if path.exists() else ""
    lines = text.split()
    if len(lines) > MOST_SECRETS:
        raise ConfigError(f"{source}: holds {len(lines)} secrets; at most {MOST_SECRETS} can be in use")
    if not all(map(_is_signing_secret, lines)):
        raise ConfigError(f"{source}: each line must be whsec_ and 24 to 64 random bytes in base64")
    return [Secret(line) for line in lines]


def _is_signing_secret(text: str) -> bool:
    """The form that Standard Webhooks gives symmetric secrets."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return text.startswith("whsec_") and 24 <= len(key) <= 64


def secret(text: str, source: str) -> Secret | None:
    """`text` without the white space around it; None when nothing is left."""
    text = text.strip()
    # The text is not in the message: it may be a key with one slip in it.
    if " " in text or not (text.isascii() and text.isprintable()):
        raise ConfigError(f"{source}: the key has white space, control or non-ASCII characters in it")
    return Secret(text) if text else None


def read_text(path: str) -> str:
    """The file's text; `ConfigError` says in one line why it cannot be had."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError:  # UnicodeDecodeError, or a NUL in the path
        raise ConfigError(f"{path}: not a file of UTF-8 text") from None
