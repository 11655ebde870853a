"""LiveKit Agents' Deepgram plugin: KeepAlive and CloseStream are its own affair, a flush is its Finalize."""

import asyncio

import _drive
import aiohttp
from livekit import rtc
from livekit.agents import APIConnectOptions, APIStatusError
from livekit.agents.stt import SpeechEvent, SpeechEventType
from livekit.plugins import deepgram

FINAL = {SpeechEventType.INTERIM_TRANSCRIPT: False, SpeechEventType.FINAL_TRANSCRIPT: True}


def show(event: SpeechEvent) -> None:
    if event.type not in FINAL:
        return
    said = event.alternatives[0]
    # Its times carry the microseconds that its own start took.
    start, duration = round(said.start_time, 3), round(said.end_time - said.start_time, 3)
    _drive.result(said.text, is_final=FINAL[event.type], start=start, duration=duration)


async def main() -> None:
    job = _drive.job()
    sample_rate = int(job.query["sample_rate"])
    async with aiohttp.ClientSession() as session:
        stt = deepgram.STT(
            model=job.query["model"],
            sample_rate=sample_rate,
            punctuate=False,
            endpointing_ms=int(job.query["endpointing"]),
            api_key=job.key,
            base_url=f"{job.base}/v1/listen",
            http_session=session,
        )
        # No retries: a refusal is to be seen, not tried again.
        stream = stt.stream(conn_options=APIConnectOptions(max_retry=0))

        async def audio(chunk: bytes) -> None:
            stream.push_frame(rtc.AudioFrame(chunk, sample_rate, 1, len(chunk) // 2))

        async def finalize() -> None:
            stream.flush()

        async def speak() -> None:
            await _drive.at_real_time(job, audio, finalize)
            stream.end_input()

        speaking = asyncio.create_task(speak())
        try:
            async for event in stream:
                show(event)
        except APIStatusError as error:
            speaking.cancel()
            _drive.refused(error.status_code)
        else:
            _drive.end()


asyncio.run(main())
