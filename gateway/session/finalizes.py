"""Who asked for a Finalize on the present connection, and whose an answer is.

Deepgram answers each one with a final on its channel, or one on every channel. A client's is awaited by the
client. One of ours is for a channel whose audio has had no final for long: its answer must not look as if the
client had asked (continuity.md I11, 5.6).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

MOST: Final = 100
"""Unanswered ones that are remembered; Deepgram need not answer."""

_ALL: Final = -1
_CHANNELS: Final = range(1001)
"""A number beyond these names none; Deepgram has twenty."""
_ASKED = re.compile(rb'"from_finalize"(\s*):\s*true')


class _Finalize(msgspec.Struct):
    channel: int = _ALL


_decode: Final = msgspec.json.Decoder(_Finalize).decode


class _Asked(msgspec.Struct):
    key: Any
    channel: int
    sample: int
    answered: set[int]


class Finalizes:
    __slots__ = ("_asked", "_ours", "_prompted_at")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Another connection knows of none."""
        self._asked: list[_Asked] = []
        self._ours: Counter[int] = Counter()  # unanswered, per channel
        self._prompted_at: dict[int, int] = {}

    def went_up(self, key: object, text: str, sample: int) -> None:
        """The client's went up, after `sample`; `key` is what `answered` gives back."""
        try:
            channel = _decode(text).channel
        except (msgspec.DecodeError, RecursionError):
            channel = _ALL
        if channel not in _CHANNELS:
            channel = _ALL
        self._asked = [*self._asked, _Asked(key, channel, sample, set())][-MOST:]

    def prompt(self, committed: Sequence[int], sent: int, span: int) -> list[str]:
        """A Finalize for each channel that has had no final for more than `span` samples, once per `span`."""
        texts = []
        for channel, mark in enumerate(committed):
            if sent - max(mark, self._prompted_at.get(channel, 0)) > span:
                self._prompted_at[channel] = sent
                self._ours[channel] += 1
                texts.append(f'{{"type":"Finalize","channel":{channel}}}')
        return texts

    def answered(self, channel: int, channels: int, sample: int) -> tuple[object, bool]:
        """A final of `channel`, up to `sample`, says that it is an answer.

        Returns the key of the client's Finalize if it is the first one to that, and whether the client asked.
        """
        for asked in self._asked:
            concerns = asked.channel in (_ALL, channel) and channel not in asked.answered
            if concerns and (asked.sample <= sample or not self._ours[channel]):
                asked.answered.add(channel)
                if asked.channel == channel or len(asked.answered) >= channels:
                    self._asked.remove(asked)
                return asked.key if len(asked.answered) == 1 else None, True
        is_ours = self._ours[channel] > 0
        self._ours[channel] -= is_ours
        return None, not is_ours


def unasked(raw: bytes) -> bytes:
    """A final without the word that it answers a Finalize."""
    return _ASKED.sub(rb'"from_finalize"\1:false', raw)
