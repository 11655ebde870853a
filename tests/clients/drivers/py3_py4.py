"""deepgram-sdk 3 and 4, asynchronous client.

`finish` sends CloseStream and hangs up half a second later, whatever is still to come.
"""

import asyncio

import _drive
from deepgram import (
    AsyncListenRESTClient,
    DeepgramApiError,
    DeepgramClient,
    DeepgramClientOptions,
    LiveTranscriptionEvents,
)
from websockets.exceptions import InvalidStatus


async def recordings(job: _drive.Job, rest: AsyncListenRESTClient) -> None:
    try:
        _drive.answer("file", (await rest.transcribe_file({"buffer": job.audio}, job.query)).to_dict())
        _drive.answer("url", (await rest.transcribe_url({"url": job.url}, job.query)).to_dict())
        await rest.transcribe_file({"buffer": job.audio}, job.wrong)
    except DeepgramApiError as error:
        _drive.refused(int(error.status))


async def main() -> None:
    job = _drive.job()
    # Without this option the SDK logs a refused handshake and returns False: the status would be lost.
    options = {"termination_exception_connect": True}
    client = DeepgramClient(job.key, DeepgramClientOptions(url=job.base, options=options))
    if job.url:
        await recordings(job, client.listen.asyncrest.v("1"))
        return
    socket = client.listen.asyncwebsocket.v("1")

    async def on_result(_socket: object, result: object, **_: object) -> None:
        _drive.emit(result.to_dict())

    async def on_metadata(_socket: object, metadata: object, **_: object) -> None:
        _drive.emit(metadata.to_dict())

    async def on_speech(_socket: object, speech_started: object, **_: object) -> None:
        _drive.emit(speech_started.to_dict())

    async def on_error(_socket: object, error: object, **_: object) -> None:
        _drive.emit({"type": "_error", "error": str(error)})

    socket.on(LiveTranscriptionEvents.Transcript, on_result)
    socket.on(LiveTranscriptionEvents.Metadata, on_metadata)
    socket.on(LiveTranscriptionEvents.SpeechStarted, on_speech)
    socket.on(LiveTranscriptionEvents.Error, on_error)
    try:
        await socket.start(job.query)
    except InvalidStatus as error:
        _drive.refused(error.response.status_code)
        return
    await _drive.at_real_time(job, socket.send, socket.finalize, socket.keep_alive)
    await socket.finish()
    _drive.end()


asyncio.run(main())
