"""The tree as text: each key with its value, its limits and its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import msgspec
from msgspec import inspect

from gateway.config.tree import Config

_BOUNDS: Final = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_HEAD: Final = """\
# Every setting of Gateway with its default; delete what you leave as it is.
# `gateway check-config -c FILE` checks a file; `gateway print-config --env` lists the variables for it.

"""


class Setting(NamedTuple):
    """One key of the tree: `path` as in `deepgram.regions[0].url`, `limits` in words as in `at least 1`."""

    path: str
    value: Any
    description: str
    limits: str


def settings(section: msgspec.Struct, path: str = "") -> Iterator[Setting]:
    """Every key in the order of the tree with its value in `section`, a `Config` or its part at `path`."""
    for field in cast(inspect.StructType, inspect.type_info(type(section))).fields:
        value = getattr(section, field.name)
        here = f"{path}.{field.name}".lstrip(".")
        if isinstance(value, msgspec.Struct):
            yield from settings(value, here)
        elif isinstance(value, tuple) and field.name == "regions":
            for index, item in enumerate(value):
                yield from settings(item, f"{here}[{index}]")
        else:
            kind = cast(inspect.Metadata, field.type)
            description = (kind.extra_json_schema or {})["description"]
            yield Setting(here, value, description, _limits(kind.type))


def env_names() -> list[tuple[str, str]]:
    """Each environment variable that overrides a key, with that key's description."""
    names = []
    for path, value, description, _ in settings(Config()):
        variable = "GATEWAY_" + re.sub(r"\]\.|\.|\[", "__", path).upper()
        names.append((f"{variable}__0" if isinstance(value, tuple) else variable, description))
    return names


def render_toml(config: Config) -> str:
    """`config` as TOML that loads to the same values, with each key's reason; a proxy's login is masked."""
    lines: list[str] = []
    table = ""
    for path, value, description, limits in settings(config):
        parent, _, key = path.rpartition(".")
        if parent != table:
            table = parent
            name = re.sub(r"\[\d+\]$", "", table)
            lines += ["", f"[{table}]" if name == table else f"[[{name}]]"]
        lines += [f"# {description}" + (f" ({limits})" if limits else ""), f"{key} = {_toml(value)}"]
    return "\n".join(lines).lstrip() + "\n"


def defaults_toml() -> str:
    """The text of the `config.toml` that ships with the project."""
    return _HEAD + render_toml(Config())


def _limits(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.UnionType):
        return ", or ".join(_limits(member) for member in kind.types)
    if isinstance(kind, inspect.Metadata):
        return _limits(kind.type)
    if isinstance(kind, inspect.LiteralType):
        values = [str(value) for value in kind.values]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    bounds = {word: getattr(kind, name, None) for name, word in _BOUNDS.items()}
    return ", ".join(f"{word} {bound:.12g}" for word, bound in bounds.items() if bound is not None)


def _toml(value: str | float | bool | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(re.sub(r"(://).*@", r"\1***@", value), ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )
    return str(value).lower() if isinstance(value, bool) else repr(value)
