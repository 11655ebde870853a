"""deepgram-sdk 6 and 7, asynchronous client."""

import asyncio
import inspect

import _drive
from deepgram import AsyncDeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment


async def main() -> None:
    job = _drive.job()
    ws = job.websocket_base
    hosts = {"base": job.base, "production": ws, "agent": ws}
    if "agent_rest" in inspect.signature(DeepgramClientEnvironment).parameters:  # since 7
        hosts["agent_rest"] = job.base
    client = AsyncDeepgramClient(api_key=job.key, environment=DeepgramClientEnvironment(**hosts))
    try:
        if job.url:
            media = client.listen.v1.media
            _drive.answer("file", (await media.transcribe_file(request=job.audio, **job.query)).dict())
            _drive.answer("url", (await media.transcribe_url(url=job.url, **job.query)).dict())
            await media.transcribe_file(request=job.audio, **job.wrong)
            return
        async with client.listen.v1.connect(**job.query) as socket:
            socket.on(EventType.MESSAGE, lambda message: _drive.emit(message.dict()))
            listening = asyncio.create_task(socket.start_listening())
            await _drive.at_real_time(job, socket.send_media, socket.send_finalize, socket.send_keep_alive)
            await socket.send_close_stream()
            await listening
    except ApiError as error:
        _drive.refused(error.status_code)
    else:
        _drive.end()


asyncio.run(main())
