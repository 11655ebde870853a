"""The composition root: builds every part, starts them in order, drains them, closes them in reverse.

`gateway.py` is the life of a gateway, `process.py` the process around it; each other one builds some parts.
"""

from gateway.app.gateway import Gateway
from gateway.app.process import notify, serve

__all__ = ["Gateway", "notify", "serve"]
