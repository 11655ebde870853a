"""A TOML file and the environment become one `Config`, or one line that points at what is wrong."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from gateway.config.render import settings
from gateway.config.rules import problems
from gateway.config.secrets import read_text
from gateway.config.tree import Config, RegionConfig
from gateway.errors import ConfigError

_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")
_KEY: Final = re.compile(r"\s*([\w.-]+)\s*=")
_TYPES: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def load(path: str | None, env: Mapping[str, str]) -> Config:
    """Read the TOML file at `path` (None: defaults only), let `env` override it, and check everything.

    `GATEWAY_SERVER__PORT=9000` is `server.port`, `GATEWAY_DEEPGRAM__REGIONS__0__URL` the first region's url.
    Raises `ConfigError`: one line that begins with the file and line, or with the variable, at fault.
    """
    text = read_text(path) if path else ""
    source = _Source(path or "", _lines(text), {})
    tree = _parse(path or "", text)
    _refuse_unknown(tree, msgspec.to_builtins(Config()), "", source)
    tree = _editable(msgspec.to_builtins(_convert(tree, source, strict=True)))
    # GATEWAY_PORT is no setting: Kubernetes sets it, and more like it, for a service called gateway.
    for name in sorted(name for name in env if name.startswith("GATEWAY_") and "__" in name):
        source.variables[_override(tree, name, env[name])] = name
    config = _convert(tree, source, strict=False)
    for where, problem in problems(config):
        raise source.error(where, problem)
    return config


class _Source(NamedTuple):
    """Where each value came from, so that a refusal can point at it."""

    file: str
    lines: Mapping[str, int]
    variables: dict[str, str]

    def error(self, path: str, problem: str) -> ConfigError:
        if path in self.variables:
            return ConfigError(f"{self.variables[path]}: {problem}")
        at = path
        while at and at not in self.lines:  # what is inside an inline table stands on its parent's line
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        place = f"{self.file}:{self.lines[at]}: " if at else f"{self.file}: " if self.file else ""
        return ConfigError(f"{place}{problem if problem.startswith('unknown') else f'{path}: {problem}'}")


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).partition(" (at line ")
        line = place.partition(",")[0]
        raise ConfigError(f"{path}{f':{line}' if place else ''}: invalid TOML: {problem}") from None


def _lines(text: str) -> dict[str, int]:
    """The line of each table and key, for TOML as people write it; a miss costs a line number, no more."""
    found: dict[str, int] = {}
    prefix = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            prefix = header[2]
            if header[1] == "[[":
                index = 0
                while f"{prefix}[{index}]" in found:
                    index += 1
                prefix += f"[{index}]"
            found[prefix] = number
        elif key := _KEY.match(line):
            found.setdefault(f"{prefix}.{key[1]}".lstrip("."), number)
    return found


def _convert(tree: dict[str, Any], source: _Source, *, strict: bool) -> Config:
    try:
        return msgspec.convert(tree, Config, strict=strict)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).replace("`", "").partition(" - at $.")
        limits = {setting.path: setting.limits for setting in settings(Config())}.get(path)
        problem = _in_words(problem)
        raise source.error(path, f"{problem} ({limits})" if limits else problem) from None


def _in_words(problem: str) -> str:
    """What msgspec says in types of Python, for somebody who writes TOML; bounds are told by who calls."""
    if types := re.fullmatch(r"Expected (.+), got (\w+)", problem):
        wanted = " or ".join(_TYPES.get(name, name) for name in types[1].split(" | "))
        return f"must be {wanted}, not {_TYPES.get(types[2], types[2])}"
    if problem.startswith("Invalid enum value"):
        return f"cannot be {problem.removeprefix('Invalid enum value ')}"
    return "must not be empty" if "of length" in problem else "is out of range"


def _refuse_unknown(tree: dict[str, Any], known: dict[str, Any], path: str, source: _Source) -> None:
    """Raise for the first key that `known` (the defaults) lacks; wrong types are left to the conversion."""
    for key, value in tree.items():
        here = f"{path}.{key}".lstrip(".")
        if key not in known:
            raise source.error(here, _unknown(here))
        if isinstance(known[key], dict) and isinstance(value, dict):
            _refuse_unknown(value, known[key], here, source)
        if key == "regions" and isinstance(value, list):
            for index, item in enumerate(value):
                region = item if isinstance(item, dict) else {}
                _refuse_unknown(region, msgspec.to_builtins(RegionConfig()), f"{here}[{index}]", source)


def _unknown(path: str) -> str:
    known = [setting.path for setting in settings(Config())]
    sections = [*dict.fromkeys(name.rpartition(".")[0] for name in known)]
    close = difflib.get_close_matches(path, known + sections, n=1, cutoff=0.7)
    return f"unknown key {path}{f'; did you mean {close[0]}?' if close else ''}"


def _override(tree: dict[str, Any], name: str, value: str) -> str:
    """Put the text of the variable `name` into `tree`; returns the path of the key that it names."""
    steps = [int(step) if step.isdecimal() else step for step in name[len("GATEWAY_") :].lower().split("__")]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    *parents, key = steps
    try:
        holder: Any = tree
        for step in parents:
            holder = _item(holder, step, msgspec.to_builtins(RegionConfig()))
        if isinstance(_item(holder, key, ""), dict | list):
            raise ConfigError(
                f"{name}: {path} is not a single value; the variables of a list end in __0, __1 …"
            )
        holder[key] = value
    except IndexError:
        raise ConfigError(f"{name}: a list is numbered from 0, and one before this is missing") from None
    except (KeyError, TypeError):
        raise ConfigError(f"{name}: {_unknown(path)}") from None
    return path


def _item(holder: Any, step: str | int, fresh: Any) -> Any:
    """What `holder` has at `step`; one past a list's end, `fresh` is appended to it first."""
    if isinstance(holder, list) and step == len(holder):
        holder.append(fresh)
    return holder[step]


def _editable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _editable(item) for key, item in value.items()}
    return [_editable(item) for item in value] if isinstance(value, list | tuple) else value
