"""Recognisers behind one interface: audio in per channel, words with sample positions out."""

from gateway.emulator.engines.base import Ear, Engine, EngineFull, SilentEar, Word
from gateway.emulator.engines.choice import EngineName, engine_for

__all__ = ["Ear", "Engine", "EngineFull", "EngineName", "SilentEar", "Word", "engine_for"]
