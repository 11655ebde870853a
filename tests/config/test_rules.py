"""Rules across keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import Config
from gateway.config.rules import is_loopback, problems, validate
from gateway.errors import ConfigError


def broken(**sections: dict[str, Any]) -> list[tuple[str, str]]:
    return list(problems(msgspec.convert(sections, Config)))


def test_defaults_are_valid() -> None:
    """The defaults break no rule."""
    assert broken() == []


def test_validate_raises() -> None:
    """The first broken rule is raised with its key in front."""
    config = msgspec.convert({"session": {"pace": 1.1, "catch_up_pace": 1.2}}, Config)
    with pytest.raises(ConfigError, match=r"^session\.catch_up_pace: must not be above session\.pace"):
        validate(config)


def test_hosts_are_names() -> None:
    """As `Host` has them, but without a port."""
    assert broken(server={"hosts": ["gw.example.com", "gateway", "*"]}) == []
    wrong = ["https://gw.example.com", "gw.example.com:8081", "*.example.com", ""]
    found = broken(server={"hosts": wrong})
    assert [path for path, _ in found] == [f"server.hosts[{index}]" for index in range(4)]


def test_a_journal_fits_the_queue_of_its_client() -> None:
    """Who comes back gets the whole journal at once."""
    found = broken(resume={"journal_bytes": 4_000_000})
    assert [path for path, _ in found] == ["resume.journal_bytes"]
    assert broken(resume={"journal_bytes": 4_000_000}, session={"client_queue_bytes": 4_000_000}) == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("::", False),
        ("", False),
        ("localhost.example", False),
        ("10.0.0.1", False),
    ],
)
def test_open_door(host: str, loopback: bool) -> None:
    """Either port is for this machine only, unless the operator says that it is for anyone."""
    assert is_loopback(host) is loopback
    assert (broken(server={"host": host}) == []) is loopback
    assert [path for path, _ in broken(sidecar={"host": host})] == ([] if loopback else ["sidecar.host"])
    assert broken(server={"host": host, "insecure": True}, sidecar={"host": host}) == []


@pytest.mark.parametrize("mode", ["keys", "jwt"])
def test_modes_of_later_versions(mode: str) -> None:
    """A mode that does not exist yet is refused rather than ignored."""
    assert [path for path, _ in broken(auth={"mode": mode})] == ["auth.mode"]


def test_one_port_twice() -> None:
    """Both ports cannot be the same one, but the kernel may choose both."""
    assert [path for path, _ in broken(sidecar={"port": 8080})] == ["sidecar.port"]
    assert broken(server={"port": 0}, sidecar={"port": 0}) == []


@pytest.mark.parametrize(
    ("url", "valid"),
    [
        ("https://api.eu.deepgram.com", True),
        ("http://10.0.0.1:8080", True),
        ("http://[::1]:1/", True),
        ("wss://api.deepgram.com", False),
        ("https://", False),
        ("api.deepgram.com", False),
        ("https://h/v1", False),
        ("https://h?a=b", False),
        ("https://h?", False),
        ("https://h#", False),
        ("https://user@h", False),
        ("https://h:99999", False),
        ("https://h:x", False),
        ("https://[::1", False),
        ("https://a b", False),
        ("https://h\n", False),
    ],
)
def test_region_urls(url: str, valid: bool) -> None:
    """A region is a scheme, a host and perhaps a port; what is dialled is derived from it."""
    paths = [path for path, _ in broken(deepgram={"regions": [{"url": url}]})]
    assert paths == ([] if valid else ["deepgram.regions[0].url"])


@pytest.mark.parametrize(
    ("url", "valid"),
    [
        ("", True),
        ("s3://recordings", True),
        ("s3://my.recordings-1/jobs/eu", True),
        ("s3://", False),
        ("s3:///jobs", False),
        ("s3://key:secret@recordings", False),
        ("s3://Recordings", False),
        ("s3://recordings?region=eu", False),
        ("https://recordings.s3.amazonaws.com", False),
    ],
)
def test_buckets(url: str, valid: bool) -> None:
    """A bucket and perhaps a prefix; credentials have no place in it."""
    paths = [path for path, _ in broken(prerecorded={"spool_url": url})]
    assert paths == ([] if valid else ["prerecorded.spool_url"])


@pytest.mark.parametrize("name", ["a b", "-a", "é", "a" * 33, 'a"'])
def test_region_names(name: str) -> None:
    """A name is a metric label."""
    assert [path for path, _ in broken(deepgram={"regions": [{"name": name}]})] == [
        "deepgram.regions[0].name"
    ]


def test_regions_have_different_names() -> None:
    """The second of two regions with one name is the mistake."""
    regions = [{"name": "a"}, {"name": "b"}, {"name": "a"}]
    assert [path for path, _ in broken(deepgram={"regions": regions})] == ["deepgram.regions[2].name"]


@pytest.mark.parametrize(
    ("proxy", "valid"),
    [
        ("http://proxy:3128", True),
        ("http://user:password@proxy:3128", True),
        ("http://proxy", False),
        ("https://proxy:3128", False),
        ("socks5://proxy:1080", False),
        ("http://proxy:3128/x", False),
    ],
)
def test_proxy(proxy: str, valid: bool) -> None:
    """A proxy is an http URL with a port and perhaps a login."""
    assert [path for path, _ in broken(deepgram={"proxy": proxy})] == ([] if valid else ["deepgram.proxy"])


@pytest.mark.parametrize("key", ["api_key_file", "ca_file"])
def test_files(tmp_path: Path, key: str) -> None:
    """A file that is named must be there and hold something."""
    path = tmp_path / "f"
    assert [where for where, _ in broken(deepgram={key: str(path)})] == [f"deepgram.{key}"]
    path.write_text(" \n")
    assert broken(deepgram={key: str(path)}) == [(f"deepgram.{key}", f"{path} is empty")]
    path.write_text("x")
    assert broken(deepgram={key: str(path)}) == []


def test_backoff_order() -> None:
    """The first ceiling is not above the last."""
    assert [path for path, _ in broken(session={"backoff_base": 6.0})] == ["session.backoff_base"]


@pytest.mark.parametrize(
    "entry", ["10.0.0.0/8", "fd00::/8", "127.0.0.1", "::1", "hooks.internal", "db", "a_b.c."]
)
def test_who_may_be_called_back(entry: str) -> None:
    """Networks, addresses and names."""
    assert broken(callback={"allow": [entry]}) == []


@pytest.mark.parametrize(
    "entry", ["10.0.0.1/8", "10.0.0", "*.internal", "https://hooks.internal", "a b", "", "*"]
)
def test_what_names_nobody(entry: str) -> None:
    """What looks like a network or a name and is none is told, not left without effect."""
    assert [path for path, _ in broken(callback={"allow": [entry]})] == ["callback.allow"]


def test_callback_files(tmp_path: Path) -> None:
    """They must be there."""
    keys = {"secrets_file": str(tmp_path / "none"), "ca_file": str(tmp_path / "none")}
    assert [path for path, _ in broken(callback=keys)] == ["callback.secrets_file", "callback.ca_file"]
