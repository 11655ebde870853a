"""One object that holds every number of the process, and writes them for Prometheus when asked.

Hot paths add to plain integers and to `Counts`; Prometheus objects exist only while a scrape is answered.
Label values come from closed sets: what is not in a set counts as `other`, so no caller can grow the series.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from gateway.metrics import table
from gateway.metrics.scrape import Scrape
from gateway.metrics.table import OTHER, model_label


class Counts(dict[str, float]):
    """A counter with one label: each value of its closed set is there from the start, and `other`."""

    def __init__(self, values: Iterable[str]) -> None:
        super().__init__(dict.fromkeys([*values, OTHER], 0))

    def add(self, value: str, amount: float = 1) -> None:
        self[value if value in self else OTHER] += amount


class Histogram:
    """Counts of observations by upper bound, in seconds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations at or below it), as the text format wants them."""
        return list(zip([*map(str, self.bounds), "+Inf"], accumulate(self.counts), strict=True))


class Metrics:
    """The numbers of one process, by the attributes that the table names.

    Add to integers and floats with `+=`, to `Counts` with `add`, to histograms with `observe`; per audio
    frame only to integers. `regions` are the configured names. One thread writes and scrapes.
    """

    def __init__(self, regions: Iterable[str], version: str) -> None:
        self.regions = frozenset(regions)
        self.requests: dict[tuple[str, str, str], int] = {}
        self.latency: dict[tuple[str], Histogram] = {}
        self.queue_depth = self.deepgram_connections = self.sessions_active = self.client_connections = 0
        self.sessions_detached = self.journal_bytes = self.takeovers = 0
        self.sessions = Counts(table.OUTCOMES)
        self.continuity = Counts(table.CONTINUITIES)
        self.resumes = Counts(table.RESUME_OUTCOMES)
        self.client_audio_seconds = self.client_throttled_seconds = self.replayed_audio_seconds = 0.0
        self.client_audio_bytes = self.client_slow = self.empty_frames = self.stale_results = 0
        self.client_protocol_errors = Counts(table.CLOSE_CODES)
        self.client_aborted = Counts(table.ABORT_REASONS)
        self.client_floods = Counts(table.FLOODS)
        self.results = Counts(table.RESULT_KINDS)
        self.gap_seconds = Counts(table.GAP_REASONS)
        self.backfills = Counts(table.BACKFILL_OUTCOMES)
        self.backfilled_audio_seconds = 0.0
        self.dials = Counts(table.DIAL_OUTCOMES)
        self.handshakes = Counts(table.HANDSHAKE_STATUSES)
        self.breaks = Counts(table.BREAK_CAUSES)
        self.upstream_audio_bytes = self.upstream_messages_sent = self.upstream_messages_received = 0
        self.upstream_bad_messages = self.finalizes = self.log_lines_dropped = 0
        self.upstream_implausible = self.upstream_repeated = self.ignored_audio_bytes = 0
        self.replay_buffer_bytes = self.dials_waiting = self.sessions_catching_up = 0
        self.session_lag_seconds = self.batch_window_seconds = 0.0
        self.uploads_active = self.upload_bytes = self.upload_copies = self.spool_bytes = 0
        self.uploads_refused = Counts(table.UPLOAD_REFUSALS)
        self.recording_attempts = Counts(table.ATTEMPT_OUTCOMES)
        self.shed = Counts(table.SHED_STAGES)
        self.callbacks = Counts(table.DELIVERY_OUTCOMES)
        self.callback_attempts = Counts(table.DELIVERY_ANSWERS)
        self.callback_wait = Histogram(table.DIAL_WAIT_BUCKETS)
        self.callbacks_pending = 0
        self.callback_age_seconds = 0.0
        self.dial_wait = Histogram(table.DIAL_WAIT_BUCKETS)
        self.accept_wait = Histogram(table.DIAL_BUCKETS)
        self.dial_seconds = Histogram(table.DIAL_BUCKETS)
        self.loop_lag = Histogram(table.LOOP_BUCKETS)
        self.store_up = self.store_queue_depth = 0
        self.store_commit = Histogram(table.COMMIT_BUCKETS)
        self.store_errors = Counts(table.STORE_ERRORS)
        self.store_dropped = Counts(table.STORE_DROPPED)
        self.jobs = Counts(table.JOB_STATES)
        self.jobs_accepted = self.job_reruns = 0
        self.jobs_ended = Counts(table.JOB_STATES)
        self.job_attempts = Counts(table.JOB_ATTEMPTS)
        self.job_wait = Histogram(table.JOB_BUCKETS)
        self.job_seconds = Histogram(table.JOB_BUCKETS)
        self.jobs_missing = 0
        self.redis_up = self.redis_policy_ok = 1
        self.redis_errors = Counts(table.REDIS_ERRORS)
        self.config_generation = 1
        self.build_info = {(version, platform.python_version()): 1}
        self._refreshers: list[Callable[[], None]] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Scrape(self))
        ProcessCollector(registry=self._registry)

    def transcription_ended(self, outcome: str, model: str | None, region: str | None) -> None:
        """Count one transcription; `model` as in the query, `region` the last one it used."""
        status = outcome if outcome in table.OUTCOMES else OTHER
        key = (status, model_label(model), region if region in self.regions and region else OTHER)
        self.requests[key] = self.requests.get(key, 0) + 1

    def latency_of(self, model: str | None) -> Histogram:
        """The latency histogram of a model; a session keeps it, so that a result costs one `observe`."""
        key = (model_label(model),)
        found = self.latency.get(key)
        if found is None:
            found = self.latency[key] = Histogram(table.LATENCY_BUCKETS)
        return found

    def on_scrape(self, refresh: Callable[[], None]) -> None:
        """Have `refresh` called before each scrape, to set what is read rather than counted."""
        self._refreshers.append(refresh)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body and content type that answer a scrape; OpenMetrics where its Accept header asks for it."""
        for refresh in self._refreshers:
            refresh()
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
