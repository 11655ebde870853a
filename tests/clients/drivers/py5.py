"""deepgram-sdk 5, asynchronous client: control messages go through one `send_control`."""

import asyncio

import _drive
from deepgram import AsyncDeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment
from deepgram.extensions.types.sockets import ListenV1ControlMessage


async def main() -> None:
    job = _drive.job()
    ws = job.websocket_base
    environment = DeepgramClientEnvironment(base=job.base, production=ws, agent=ws)
    client = AsyncDeepgramClient(api_key=job.key, environment=environment)
    try:
        if job.url:
            media = client.listen.v1.media
            _drive.answer("file", (await media.transcribe_file(request=job.audio, **job.query)).dict())
            _drive.answer("url", (await media.transcribe_url(url=job.url, **job.query)).dict())
            await media.transcribe_file(request=job.audio, **job.wrong)
            return
        async with client.listen.v1.connect(**job.query) as socket:

            async def control(kind: str) -> None:
                await socket.send_control(ListenV1ControlMessage(type=kind))

            socket.on(EventType.MESSAGE, lambda message: _drive.emit(message.dict()))
            listening = asyncio.create_task(socket.start_listening())
            await _drive.at_real_time(
                job, socket.send_media, lambda: control("Finalize"), lambda: control("KeepAlive")
            )
            await control("CloseStream")
            await listening
    except ApiError as error:
        _drive.refused(error.status_code)
    else:
        _drive.end()


asyncio.run(main())
