"""An engine by its name."""

from __future__ import annotations

from typing import Literal

from gateway.emulator.engines.base import Engine
from gateway.emulator.engines.script import Script, ScriptEngine
from gateway.emulator.engines.tokens import TokenEngine
from gateway.emulator.knobs import Knobs
from gateway.errors import ConfigError

EngineName = Literal["tokens", "script", "asr"]


def engine_for(name: str, knobs: Knobs) -> Engine:
    """The engine called `name`; `asr` loads its model here (about 0.3 s) and needs the extra of that name."""
    if name == "tokens":
        return TokenEngine(knobs.speakers)
    if name == "script":
        return ScriptEngine(_script(knobs))
    if name != "asr":
        raise ConfigError(f"engine: {name!r} is none of tokens, script, asr")
    try:
        from gateway.emulator.engines.asr import AsrEngine
    except ImportError as error:
        raise ConfigError(
            "engine: asr needs moonshine-voice; in Gateway's source: pip install '.[asr]'"
        ) from error
    return AsrEngine(knobs.asr_max_streams)


def _script(knobs: Knobs) -> Script:
    return Script(
        knobs.script,
        knobs.script_word,
        knobs.script_gap,
        knobs.script_pause,
        knobs.script_loop,
        knobs.speakers,
    )
