"""The reference client: streams audio to the live API and reports what comes back."""

from gateway.client.live import LiveStream, listen_url
from gateway.client.messages import Event, Result, Summary, summarise
from gateway.client.resuming import ResumingStream
from gateway.client.source import Source, open_source

__all__ = [
    "Event",
    "LiveStream",
    "Result",
    "ResumingStream",
    "Source",
    "Summary",
    "listen_url",
    "open_source",
    "summarise",
]
