"""The emulator behind TLS, under an authority of its own: `python -m bench.tls --ca FILE --knobs FILE`.

Writes the authority's certificate to `--ca`, for `[deepgram] ca_file`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
from pathlib import Path

import msgspec
import trustme

from gateway.emulator import Emulator, Knobs


async def serve(knobs: Knobs, port: int, ca: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    emulator = Emulator(knobs)
    await emulator.start(port=port, ssl=context)
    print(emulator.url, flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await emulator.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tls")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--knobs", type=Path, required=True, help="a JSON file of the emulator's knobs")
    parser.add_argument("--ca", type=Path, required=True, help="where to write the authority's certificate")
    options = parser.parse_args()
    knobs = msgspec.json.decode(options.knobs.read_bytes(), type=Knobs)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(knobs, options.port, options.ca))


if __name__ == "__main__":
    main()
