"""Gateway: live audio in, Deepgram's results out; no word lost, none twice, one clock."""

from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec

__version__ = "0.1.0"


def compiled() -> bool:
    """Whether the hot path is machine code, as in the wheel of `make wheel`: all of it, or nothing."""
    found = find_spec("gateway.live.wire")
    return found is not None and isinstance(found.loader, ExtensionFileLoader)
