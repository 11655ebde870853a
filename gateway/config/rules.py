"""What must hold across keys, and what a look at the disk must confirm."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from gateway.config.render import settings
from gateway.config.secrets import read_text
from gateway.config.tree import CallbackConfig, Config, DeepgramConfig, JobsConfig, SessionConfig
from gateway.errors import ConfigError

# A region's name is a metric label and a log field.
_REGION_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_BUCKET: Final = re.compile(r"(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w!.*'()/-]*)?)?", re.ASCII)
_HOST_NAME: Final = re.compile(r"(?=.*[a-zA-Z])[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*\.?")


def validate(config: Config) -> None:
    """Raise `ConfigError`, one line that begins with the key's path, for the first rule that is broken."""
    for path, problem in problems(config):
        raise ConfigError(f"{path}: {problem}")


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """Each broken rule as (path of the key to change, what is wrong)."""
    for path, value, _, _ in settings(config):
        if isinstance(value, float) and not math.isfinite(value):
            yield path, "must be a finite number"
    yield from _port_problems(config)
    yield from _region_problems(config.deepgram)
    yield from _egress_problems(config.deepgram)
    yield from _session_problems(config.session)
    if config.resume.journal_bytes > config.session.client_queue_bytes:
        rule = f"session.client_queue_bytes, which is {config.session.client_queue_bytes}"
        yield "resume.journal_bytes", f"a client that comes back gets all of it at once: not above {rule}"
    yield from _callback_problems(config.callback)
    yield from _jobs_problems(config.jobs)
    if not _BUCKET.fullmatch(config.prerecorded.spool_url):
        yield "prerecorded.spool_url", "must be s3://BUCKET or s3://BUCKET/PREFIX"


def is_loopback(host: str) -> bool:
    """Whether `host` is reached from this machine only; of names, localhost alone is."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    # Python 3.13 says so of ::ffff:127.0.0.1, too, by which nobody calls this machine.
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def _port_problems(config: Config) -> Iterator[tuple[str, str]]:
    server, sidecar = config.server, config.sidecar
    if config.auth.mode != "none":
        yield "auth.mode", f"'{config.auth.mode}' is not available in this version; 'none' is"
    elif not server.insecure:
        rule = "use a loopback address or server.insecure = true"
        if not is_loopback(server.host):
            yield "server.host", f"auth.mode 'none' lets anyone call: {rule}"
        if not is_loopback(sidecar.host):
            yield "sidecar.host", f"auth.mode 'none' lets anyone read and delete what is stored: {rule}"
    for index, name in enumerate(server.hosts):
        if name != "*" and not _HOST_NAME.fullmatch(name):
            yield f"server.hosts[{index}]", "must be a host name without a port, or '*'"
    if (server.host, server.port) == (sidecar.host, sidecar.port) and server.port:
        yield "sidecar.port", "is the client port (server.port) of the same host"


def _region_problems(deepgram: DeepgramConfig) -> Iterator[tuple[str, str]]:
    names = [region.name for region in deepgram.regions]
    for index, region in enumerate(deepgram.regions):
        path = f"deepgram.regions[{index}]"
        if not _REGION_NAME.fullmatch(region.name):
            yield f"{path}.name", "use 1 to 32 letters, digits, '.', '_' or '-'"
        if region.name in names[:index]:
            yield f"{path}.name", f"'{region.name}' is another region's name already"
        if problem := _url_problem(region.url, "https:// or http://", proxy=False):
            yield f"{path}.url", problem


def _egress_problems(deepgram: DeepgramConfig) -> Iterator[tuple[str, str]]:
    if deepgram.proxy and (problem := _url_problem(deepgram.proxy, "http://", proxy=True)):
        yield "deepgram.proxy", problem
    for key, file in (("api_key_file", deepgram.api_key_file), ("ca_file", deepgram.ca_file)):
        if file and (problem := _file_problem(file)):
            yield f"deepgram.{key}", problem


def _session_problems(session: SessionConfig) -> Iterator[tuple[str, str]]:
    if session.catch_up_pace > session.pace:
        yield "session.catch_up_pace", f"must not be above session.pace, which is {session.pace}"
    if session.backoff_base > session.backoff_cap:
        yield "session.backoff_base", f"must not be above session.backoff_cap, which is {session.backoff_cap}"


def _callback_problems(callback: CallbackConfig) -> Iterator[tuple[str, str]]:
    for entry in callback.allow:
        if not (_is_network(entry) or _HOST_NAME.fullmatch(entry)):
            yield "callback.allow", f"'{entry}' is no network (10.0.0.0/8), address or host name"
    if callback.public_url and not re.fullmatch(r"https?://[^/?#@]+(/[^?#]*)?", callback.public_url):
        yield "callback.public_url", "must be http:// or https://, a host, and perhaps a port and a path"
    for key, file in (("secrets_file", callback.secrets_file), ("ca_file", callback.ca_file)):
        if file and (problem := _file_problem(file)):
            yield f"callback.{key}", problem


def _is_network(text: str) -> bool:
    try:
        return bool(ipaddress.ip_network(text))
    except ValueError:
        return False


def _jobs_problems(jobs: JobsConfig) -> Iterator[tuple[str, str]]:
    for index, url in enumerate(jobs.redis):
        if urlsplit(url).scheme not in ("redis", "rediss") or not urlsplit(url).hostname:
            yield f"jobs.redis[{index}]", "must be redis:// or rediss:// and a host"
    if jobs.redis_cluster and not re.search(r"\{.+\}", jobs.redis_prefix):
        yield "jobs.redis_prefix", "a cluster needs a {hash tag} in it"


def _url_problem(url: str, schemes: str, *, proxy: bool) -> str:
    """What is wrong with a URL of scheme, host and port; a proxy's needs its port and may hold a login."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"not a URL: {error}"
    # urlsplit drops tabs and newlines without a word, so the text itself is looked at.
    if not url.isprintable() or " " in url or f"{parts.scheme}://" not in schemes.split(" or ") or not host:
        return f"must be {schemes} and a host"
    if parts.path not in ("", "/") or "?" in url or "#" in url:
        return "must end after the host and port"
    if parts.username is not None and not proxy:
        return "must not hold a user or password"
    return "needs a port" if proxy and port is None else ""


def _file_problem(path: str) -> str:
    try:
        return "" if read_text(path).strip() else f"{path} is empty"
    except ConfigError as error:
        return str(error)
