"""Who is calling, and with whose credential Deepgram is dialled."""

from gateway.auth.authenticator import ANONYMOUS, Authenticator, Principal, upstream_authorization
from gateway.auth.credential import Credential, offered_subprotocols, parse_credential, select_subprotocol

__all__ = [
    "ANONYMOUS",
    "Authenticator",
    "Credential",
    "Principal",
    "offered_subprotocols",
    "parse_credential",
    "select_subprotocol",
    "upstream_authorization",
]
