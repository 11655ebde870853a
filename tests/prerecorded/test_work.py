"""What Deepgram's answers mean for a job, and what an outcome makes of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gateway.config import DeepgramConfig, RegionConfig
from gateway.metrics import Metrics
from gateway.prerecorded.bucket import BucketSpool
from gateway.prerecorded.pools import Pools
from gateway.prerecorded.spool import Spool
from gateway.prerecorded.transcriber import Answer, Transcriber
from gateway.prerecorded.work import Again, Done, Failed, Outcome, Work, judged, put_back, settled
from gateway.store.job import Job, JobError
from tests.fakes.stand import Stand, stand  # noqa: F401 - pytest finds fixtures by name

POOL = Pools(1, 10, 3)
ERROR = JobError("DEEPGRAM_ERROR", "corrupt or unsupported data", 400)
RUNNING = Job(
    id="a", principal="p", state="running", attempts=1, max_attempts=3, worker="w", lease_until=100.0
)


def answer(status: int, body: bytes = b'{"err_msg":"no"}', retry_after: float | None = None) -> Answer:
    return Answer(status, [], body, "r", "global", retry_after=retry_after)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 415])
def test_what_would_fail_again_fails(status: int) -> None:
    """Deepgram's words and status are kept."""
    assert judged(answer(status)) == Failed(JobError("DEEPGRAM_ERROR", "no", status))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_work_later_is_tried_again(status: int) -> None:
    """Not sooner than Deepgram asks for, and nothing has been billed."""
    found = judged(answer(status, retry_after=7.0))
    assert found == Again(JobError("DEEPGRAM_ERROR", "no", status), 7.0, billed=False)


def test_a_response_is_a_result() -> None:
    """Byte for byte; its duration is read."""
    body = b'{"metadata": {"duration": 2.5}, "results": {}}'
    found = judged(answer(200, body))
    assert isinstance(found, Done)
    assert (bytes(found.result), found.request_id, found.duration) == (body, "r", 2.5)
    assert isinstance(judged(answer(200, body[:-3])), Again)


@pytest.mark.parametrize(("attempts", "least", "most"), [(1, 4.0, 6.0), (2, 8.0, 12.0)])
def test_waits_double(attempts: int, least: float, most: float) -> None:
    """From five seconds on, a fifth more or less."""
    job = msgspec.structs.replace(RUNNING, attempts=attempts)
    waits = [
        settled(job, Again(ERROR), now=1000.0, pools=POOL, backoff=5.0, random=random).run_at - 1000.0
        for random in (0.0, 0.5, 1.0)
    ]
    assert waits == pytest.approx([least, (least + most) / 2, most])


def test_waits_count_from_a_pools_first_try() -> None:
    """The region after one that has had its tries is asked soon."""
    waits = []
    for attempts in (1, 2, 3, 4):
        job = msgspec.structs.replace(RUNNING, attempts=attempts, max_attempts=6)
        after = settled(job, Again(ERROR), now=0.0, pools=Pools(2, 10, 3), backoff=5.0, random=0.5)
        waits.append(after.run_at)
    assert waits == [5.0, 10.0, 20.0, 5.0]


def test_waits_count_from_a_retry() -> None:
    """A dead letter that is run again begins with the short wait."""
    job = msgspec.structs.replace(RUNNING, attempts=4, max_attempts=6)
    after = settled(job, Again(ERROR), now=0.0, pools=POOL, backoff=5.0, random=0.5)
    assert (after.state, after.run_at, after.reruns) == ("queued", 5.0, 1)


def test_waits_are_short_after_a_change_of_settings() -> None:
    """A job accepted for three attempts has not made seventeen where twenty are given now."""
    after = settled(RUNNING, Again(ERROR), now=0.0, pools=Pools(1, 10, 20), backoff=5.0, random=0.5)
    assert after.run_at == 5.0


@pytest.mark.parametrize("outcome", [Failed(ERROR), Again(ERROR)])
def test_the_last_attempt_fails(outcome: Outcome) -> None:
    """With the error of that attempt; the lease is gone."""
    job = msgspec.structs.replace(RUNNING, attempts=3)
    after = settled(job, outcome, now=9.0, pools=POOL, backoff=5.0, random=0.5)
    assert (after.state, after.error, after.ended_at, after.lease_until) == ("failed", ERROR, 9.0, None)


def test_an_interruption_costs_no_attempt() -> None:
    """It is counted as a rerun, for Deepgram may have done the work."""
    after = put_back(RUNNING, now=9.0)
    assert (after.state, after.attempts, after.max_attempts, after.reruns) == ("queued", 1, 4, 1)


async def test_attempts_are_made(stand: Stand, tmp_path: Path) -> None:  # noqa: F811 - a fixture is asked for by name
    """From the spool and by URL, with the job's query and our credential; a 504 is somebody else's."""
    emulator = await stand.emulator()
    spool = Spool(tmp_path / "spool", 1 << 20)
    regions = DeepgramConfig(regions=(RegionConfig(url=emulator.url),))
    metrics = Metrics(["global"], "0")
    transcriber = Transcriber(regions, attempts=1, tls=None, metrics=metrics, log=None, random=lambda: 0.5)
    work = Work(transcriber, spool, headers=[("authorization", "Token k")], timeout=10.0, pools=POOL)
    async with transcriber, spool.open() as file:
        await file.write(b"\xff" * 8000)
        file.finish()
        await spool.keep(file, "kept")
        query = "model=nova-3&encoding=mulaw&sample_rate=8000"
        job = msgspec.structs.replace(RUNNING, spooled="kept", query=query)
        done = await work.attempt(job)
        assert isinstance(done, Done)
        assert done.duration == 1.0
        gone = await work.attempt(msgspec.structs.replace(job, spooled="gone"))
        assert isinstance(gone, Failed)
        assert gone.error.code == "AUDIO_GONE"
    spool.close()


async def test_audio_that_cannot_be_had_now(tmp_path: Path) -> None:
    """Is tried again, and Deepgram has heard nothing of it."""
    deepgram = DeepgramConfig()
    transcriber = Transcriber(
        deepgram, attempts=1, tls=None, metrics=Metrics(["global"], "0"), log=None, random=lambda: 0.5
    )
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment | {"AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "c"}).items():
            patch.setenv(name, value)
        spool = BucketSpool(tmp_path / "spool", 1 << 20, "s3://nowhere", insecure=True)
    work = Work(transcriber, spool, headers=[], timeout=10.0, pools=POOL)
    async with transcriber:
        outcome = await work.attempt(msgspec.structs.replace(RUNNING, spooled="kept"))
    assert isinstance(outcome, Again)
    assert (outcome.error.code, outcome.billed) == ("NO_SPOOL", False)
