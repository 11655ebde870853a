"""The proxy that Deepgram's examples lead to: FastAPI towards the client, `deepgram-sdk` towards Deepgram.

python fastapi_sdk.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvicorn
from deepgram import AsyncDeepgramClient
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

app = FastAPI()


@app.websocket("/v1/listen")
async def listen(client: WebSocket) -> None:
    await client.accept()
    parameters = dict(client.query_params)
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        async with deepgram.listen.v1.connect(**parameters) as upstream:

            async def results(message: object) -> None:
                text = message.model_dump_json() if isinstance(message, BaseModel) else str(message)
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                    await client.send_text(text)

            upstream.on(EventType.MESSAGE, results)
            listening = asyncio.create_task(upstream.start_listening())
            while (message := await client.receive())["type"] == "websocket.receive":
                if audio := message.get("bytes"):
                    await upstream.send_media(audio)
                elif "CloseStream" in (message.get("text") or ""):
                    await upstream.send_close_stream()
                    await listening
            listening.cancel()


if __name__ == "__main__":
    url = sys.argv[2]
    http = url.replace("ws", "http", 1)
    deepgram = AsyncDeepgramClient(
        api_key="bench",
        environment=DeepgramClientEnvironment(base=http, production=url, agent=url, agent_rest=http),
    )
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", log_level="warning", backlog=4096
    )
