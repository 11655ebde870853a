"""Pipecat's Deepgram service in a pipeline of its own.

It hangs up as soon as it has sent CloseStream, so the end of the recording is finalised first, as its voice
activity detection would do. Its log goes to standard error.
"""

import asyncio

import _drive
from deepgram.core.api_error import ApiError
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    TranscriptionFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.workers.runner import WorkerRunner

AFTERWARDS = 1.0  # seconds for the last result; it cannot be waited for, because an empty one is not shown


class Show(FrameProcessor):
    """The end of the pipeline: prints results."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame | InterimTranscriptionFrame):
            _drive.emit(frame.result.dict())
        await self.push_frame(frame, direction)


async def main() -> None:
    job = _drive.job()
    sample_rate = int(job.query["sample_rate"])
    settings = DeepgramSTTService.Settings(
        model=job.query["model"], endpointing=int(job.query["endpointing"]), punctuate=False
    )
    stt = DeepgramSTTService(api_key=job.key, base_url=job.base, settings=settings, sample_rate=sample_rate)
    params = PipelineParams(audio_in_sample_rate=sample_rate)
    worker = PipelineWorker(Pipeline([stt, Show()]), params=params)
    refusals: list[int] = []

    @stt.event_handler("on_error")
    async def on_error(_stt: DeepgramSTTService, error: ErrorFrame) -> None:
        if isinstance(error.exception, ApiError):
            refusals.append(error.exception.status_code)
            await worker.cancel()

    async def finalize() -> None:
        await worker.queue_frame(VADUserStoppedSpeakingFrame())

    async def audio(chunk: bytes) -> None:
        await worker.queue_frame(InputAudioRawFrame(chunk, sample_rate, 1))

    async def speak() -> None:
        await _drive.at_real_time(job, audio, finalize)
        await finalize()
        await asyncio.sleep(AFTERWARDS)
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    speaking = asyncio.create_task(speak())
    await runner.add_workers(worker)
    await runner.run()
    speaking.cancel()
    if refusals:
        _drive.refused(refusals[0])
    else:
        _drive.end()


asyncio.run(main())
