"""Writes the parts of docs/reference.md that the code knows: `python docs/generate.py`. A test compares them.

Each part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway.cli import EXIT_CODES
from gateway.config import Config, env_names, settings
from gateway.deepgram.headers import FORWARDED_HEADERS, FORWARDED_PREFIX
from gateway.metrics import METRICS
from gateway.session.states import diagram

PAGES = (Path(__file__).with_name("reference.md"), Path(__file__).with_name("design.md"))


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings_table() -> str:
    rows = (
        (f"`{name}`", f"`{value!r}`", description + (f" ({limits})" if limits else ""))
        for name, value, description, limits in settings(Config())
    )
    return table(("key", "default", "what it is for"), rows)


def environment_table() -> str:
    return table(("variable", "what it sets"), ((f"`{name}`", text) for name, text in env_names()))


def metrics_table() -> str:
    rows = ((f"`{m.name}`", m.type, ", ".join(f"`{name}`" for name in m.labels), m.help) for m in METRICS)
    return table(("metric", "type", "labels", "what it counts"), rows)


def exit_codes_table() -> str:
    return table(("code", "meaning"), ((str(code), meaning) for code, meaning in EXIT_CODES.items()))


def headers_list() -> str:
    named = ", ".join(f"`{name}`" for name in FORWARDED_HEADERS)
    return f"{named}, and all that begin with `{FORWARDED_PREFIX}`"


def states_diagram() -> str:
    return f"```mermaid\n{diagram()}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "environment": environment_table,
    "metrics": metrics_table,
    "exit codes": exit_codes_table,
    "forwarded headers": headers_list,
    "states": states_diagram,
}


def generated(text: str) -> str:
    """`text` with every part as the code says it now."""

    def part(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n{PARTS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([a-z ]+) -->\n.*?<!-- end \1 -->", part, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(generated(page.read_text()))
