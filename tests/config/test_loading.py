"""From a file and the environment to settings, or to one line that points at the mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import RegionConfig
from gateway.config.loading import load
from gateway.errors import ConfigError


def refusal(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> str:
    """The message with which settings are refused, without the folder of the file."""
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(path), env or {})
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in message
    return message


def test_defaults() -> None:
    """Without a file and without variables every key has its default; other variables are ignored."""
    config = load(None, {"GATEWAY_PORT": "tcp://10.0.0.1:80", "HOME": "/", "GATEWAY": "x"})
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)


def test_file_then_environment(tmp_path: Path) -> None:
    """A file overrides defaults and a variable overrides the file, each with the type of its key."""
    path = tmp_path / "c.toml"
    path.write_text("[server]\nport = 1\nbatch_ms = 20\n[session]\nkeepalive = 3\n")
    env = {"GATEWAY_SERVER__PORT": "2", "GATEWAY_SERVER__INSECURE": "true", "GATEWAY_SESSION__FINISH": "1.5"}
    config = load(str(path), env)
    assert (config.server.port, config.server.batch_ms, config.server.insecure) == (2, 20, True)
    assert (config.session.keepalive, config.session.finish) == (3.0, 1.5)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("0", False), ("False", False), ("TRUE", True)])
def test_booleans_from_the_environment(text: str, value: bool) -> None:
    """Booleans are 1 and 0, true and false."""
    assert load(None, {"GATEWAY_SERVER__INSECURE": text}).server.insecure is value


def test_regions_from_the_environment() -> None:
    """An index reaches into a list; one past its end makes it longer."""
    one = load(None, {"GATEWAY_DEEPGRAM__REGIONS__0__URL": "http://127.0.0.1:9"})
    assert one.deepgram.regions == (RegionConfig(name="global", url="http://127.0.0.1:9"),)
    env = {"GATEWAY_DEEPGRAM__REGIONS__1__URL": "https://h", "GATEWAY_DEEPGRAM__REGIONS__1__NAME": "eu"}
    assert load(None, env).deepgram.regions == (RegionConfig(), RegionConfig(name="eu", url="https://h"))


def test_plain_lists_from_the_environment() -> None:
    """A list of plain values is set item by item."""
    env = {"GATEWAY_SERVER__ORIGINS__0": "https://a", "GATEWAY_SERVER__ORIGINS__1": "https://b"}
    assert load(None, env).server.origins == ("https://a", "https://b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[server]\n\n[session]\nkepalive = 3",
            "c.toml:4: unknown key session.kepalive; did you mean session.keepalive?",
        ),
        ("sever = 1", "c.toml:1: unknown key sever; did you mean server?"),
        ("[server]\nxyzzy = 1", "c.toml:2: unknown key server.xyzzy"),
        (
            "[[deepgram.regions]]\nname = 'a'\n[[deepgram.regions]]\nulr = ''",
            "c.toml:4: unknown key deepgram.regions[1].ulr; did you mean deepgram.regions[0].url?",
        ),
        (
            "[server]\nport = '1'",
            "c.toml:2: server.port: must be a whole number, not text (at least 0, at most 65535)",
        ),
        (
            "server.port = 70000",
            "c.toml:1: server.port: is out of range (at least 0, at most 65535)",
        ),
        (
            "[server]\nbatch_ms = 'fast'",
            "c.toml:2: server.batch_ms: cannot be 'fast' (at least 0, at most 250, or auto)",
        ),
        (
            "[log]\nlevel = 'loud'",
            "c.toml:2: log.level: cannot be 'loud' (one of debug, error, info, warning)",
        ),
        (
            "[deepgram]\nregions = [\n  {url = 1},\n]",
            "c.toml:2: deepgram.regions[0].url: must be text, not a whole number",
        ),
        ("[deepgram]\nregions = [1]", "c.toml:2: deepgram.regions[0]: must be a table, not a whole number"),
        ("[deepgram]\nregions = []", "c.toml:2: deepgram.regions: must not be empty"),
        ("[server]\norigins = '*'", "c.toml:2: server.origins: must be a list, not text"),
        ("[server]\ndrain = inf", "c.toml:2: server.drain: must be a finite number"),
        ("server = 1", "c.toml:1: server: must be a table, not a whole number"),
        ("\na = \nb = 1", "c.toml:2: invalid TOML: Invalid value"),
        ("a = ", "c.toml: invalid TOML: Invalid value (at end of document)"),
        (
            "[auth]\nmode = 'jwt'",
            "c.toml:2: auth.mode: 'jwt' is not available in this version; 'none' is",
        ),
    ],
)
def test_a_mistake_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    """The line, the key, what is wrong, and what was probably meant."""
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GATEWAY_SERVER__PROT", "1", "unknown key server.prot; did you mean server.port?"),
        ("GATEWAY_SERVER__PORT__X", "1", "unknown key server.port.x; did you mean server.port?"),
        (
            "GATEWAY_SERVER__HOST__0",
            "1",
            "unknown key server.host[0]; did you mean server.host?",
        ),
        (
            "GATEWAY_DEEPGRAM__REGIONS__2__URL",
            "x",
            "a list is numbered from 0, and one before this is missing",
        ),
        ("GATEWAY_SERVER__PORT", "x", "must be a whole number, not text (at least 0, at most 65535)"),
        ("GATEWAY_SERVER__DRAIN", "nan", "is out of range (at least 0)"),
        ("GATEWAY_SERVER__INSECURE", "yes", "must be true or false, not text"),
        (
            "GATEWAY_SERVER__ORIGINS",
            "https://a",
            "server.origins is not a single value; the variables of a list end in __0, __1 …",
        ),
        ("GATEWAY_SERVER", "", None),
        ("GATEWAY_DEEPGRAM__REGIONS__0__URL", "ftp://h", "must be https:// or http:// and a host"),
    ],
)
def test_a_mistake_in_a_variable(tmp_path: Path, name: str, value: str, message: str | None) -> None:
    """The variable stands where the line would; a name without two underscores is not ours."""
    if message is None:
        load(None, {name: value})
    else:
        assert refusal(tmp_path, "", {name: value}) == f"{name}: {message}"


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is one line."""
    with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory$"):
        load(str(tmp_path / "none.toml"), {})


def test_file_that_is_no_text(tmp_path: Path) -> None:
    """A file that is not UTF-8 is one line."""
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"c\.toml: not a file of UTF-8 text$"):
        load(str(path), {})
