"""The HTTP side: health, metrics, version; and Deepgram's HTTP paths for the client port."""

from gateway.sidecar.http import HttpServer
from gateway.sidecar.routes import Status, build, build_deepgram_paths

__all__ = ["HttpServer", "Status", "build", "build_deepgram_paths"]
