"""The table of every metric, and the closed sets that its label values come from."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

OTHER: Final = "other"
"""What every set has besides its own values."""
OUTCOMES: Final = ("completed", "refused", "abandoned", "failed")
"""How a session, and with it a transcription, ends: with all results; refused before it began; left by its
client; impossible to finish."""
RESULT_KINDS: Final = ("interim", "final")
BREAK_CAUSES: Final = ("closed", "lost", "net_0000", "net_0001", "data_0000", "stalled", "too_big", "rotated")
DIAL_OUTCOMES: Final = ("opened", "rejected", "unavailable", "timeout", "abandoned")
HANDSHAKE_STATUSES: Final = ("101", "400", "401", "402", "403", "429", "4xx", "5xx")
ATTEMPT_OUTCOMES: Final = (
    *("2xx", "400", "401", "402", "403", "408", "413", "429", "4xx", "504", "5xx"),
    *("unavailable", "timeout"),
)
"""What came of asking Deepgram for a recording: the status of its answer, no answer, none in time."""
UPLOAD_REFUSALS: Final = (
    *("empty", "too_large", "too_slow", "encoded", "malformed", "no_audio"),
    *("callback", "credential", "busy", "draining", "spool_full", "key_reused", "key_in_use"),
)
CLOSE_CODES: Final = ("1002", "1003", "1007", "1008", "1009")
ABORT_REASONS: Final = ("write_buffer", "handshake_timeout", "capacity", "draining", "tls", "not_http")
FLOODS: Final = ("messages", "finalizes")
GAP_REASONS: Final = (
    "buffer_overflow",
    "upstream_hole",
    "upstream_failed",
    "not_replayable",
    "backfill_late",
    "drain",
    "client_discarded",
)
BACKFILL_OUTCOMES: Final = ("complete", "late", "failed")
"""How a hole was transcribed beside its call: wholly; not in time; not at all, or not wholly."""
DELIVERY_OUTCOMES: Final = ("delivered", "failed")
"""What becomes of a callback: answered with a 2xx; given up, or its receiver said 410."""
DELIVERY_ANSWERS: Final = ("2xx", "3xx", "4xx", "5xx", "unanswered")
CONTINUITIES: Final = ("exact", "best_effort", "none")
SHED_STAGES: Final = ("refused", "shrunk", "closed")
RESUME_OUTCOMES: Final = ("recovered", "lost", "unknown", "wrong_token", "mistaken", "abandoned")
"""What becomes of a client that wants its session back: it has it; results that it lacks are gone; there is
none of its own; refused; closed for another first message; gone before it said anything."""
REDIS_ERRORS: Final = ("timeout", "failed")
STORE_ERRORS: Final = ("down", "full", "conflict", "failed")
"""Why a write was not done: no database; too much waits; the row exists; its own fault."""
JOB_STATES: Final = ("queued", "running", "succeeded", "failed", "cancelled")
JOB_ATTEMPTS: Final = ("done", "again", "failed", "lost", "interrupted", "waiting", "fenced")
"""How an attempt at a job ends: with a result; to be tried again; for good; with its worker; put back by a
worker that stops; handed to Deepgram, which calls back; too late, since another attempt or a cancellation had
come first."""
_MODEL_NAMES: Final = """
    nova-3 nova-3-general nova-3-medical flux-general-en flux-general-multi
    nova-2 nova-2-general nova-2-meeting nova-2-finance nova-2-conversationalai nova-2-voicemail nova-2-video
    nova-2-medical nova-2-drivethru nova-2-automotive nova nova-general nova-phonecall nova-medical
    enhanced enhanced-general enhanced-meeting enhanced-phonecall enhanced-finance
    base meeting phonecall finance conversationalai voicemail video custom
"""
MODELS: Final = frozenset(_MODEL_NAMES.split())
"""Deepgram's public models; a custom model's name is a customer's, and counts as `other`."""

LATENCY_BUCKETS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
DIAL_BUCKETS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
DIAL_WAIT_BUCKETS: Final = (0.01, 0.1, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0)
STORE_DROPPED: Final = ("recording", "final", "call", "session")
"""What was not stored: a recording's transcript; a final of a call, its beginning, how it went."""
COMMIT_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
JOB_BUCKETS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
LOOP_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Described(NamedTuple):
    """One metric, as the documentation shows it; `attribute` is where `Metrics` holds it."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    attribute: str
    help: str


METRICS: Final = (
    Described(
        "transcription_requests_total",
        "counter",
        ("status", "model", "region"),
        "requests",
        "Transcriptions that ended, by outcome.",
    ),
    Described(
        "transcription_latency_seconds",
        "histogram",
        ("model",),
        "latency",
        "For live audio, its age: what was received beyond a result's end when it left for the client. For a "
        "recording, from its last byte to the answer.",
    ),
    Described(
        "transcription_queue_depth", "gauge", (), "queue_depth", "Transcriptions that wait for their turn."
    ),
    Described(
        "deepgram_active_connections", "gauge", (), "deepgram_connections", "Open connections to Deepgram."
    ),
    Described(
        "gw_sessions_active",
        "gauge",
        (),
        "sessions_active",
        "Live sessions, those that wait for a new upstream connection included.",
    ),
    Described("gw_sessions_total", "counter", ("outcome",), "sessions", "Live sessions that ended."),
    Described(
        "gw_continuity_total",
        "counter",
        ("continuity",),
        "continuity",
        "Live sessions that ended, by what could be relied on had a connection to Deepgram broken.",
    ),
    Described(
        "gw_client_connections",
        "gauge",
        (),
        "client_connections",
        "Open connections on the client port, handshakes included.",
    ),
    Described(
        "gw_client_audio_seconds_total",
        "counter",
        (),
        "client_audio_seconds",
        "Audio received from clients, in seconds by its sample count; of containers when the session ends.",
    ),
    Described(
        "gw_client_audio_bytes_total", "counter", (), "client_audio_bytes", "Audio received from clients."
    ),
    Described(
        "gw_client_protocol_errors_total",
        "counter",
        ("code",),
        "client_protocol_errors",
        "Client connections closed for breaking the protocol, by close code.",
    ),
    Described(
        "gw_client_aborted_total",
        "counter",
        ("reason",),
        "client_aborted",
        "Client connections cut off or turned away without a session.",
    ),
    Described(
        "gw_client_slow_total",
        "counter",
        (),
        "client_slow",
        "Clients closed with 1013 or 4408 because they left their results unread.",
    ),
    Described(
        "gw_client_throttled_seconds_total",
        "counter",
        (),
        "client_throttled_seconds",
        "Time during which a client that sends faster than allowed was not read.",
    ),
    Described(
        "gw_client_floods_total",
        "counter",
        ("what",),
        "client_floods",
        "Live sessions whose client said more than it may, and was read more slowly from then on.",
    ),
    Described(
        "gw_sessions_detached",
        "gauge",
        (),
        "sessions_detached",
        "Live sessions that wait for their client to come back.",
    ),
    Described(
        "gw_journal_bytes",
        "gauge",
        (),
        "journal_bytes",
        "Results kept for clients that may come back.",
    ),
    Described(
        "gw_resumes_total",
        "counter",
        ("outcome",),
        "resumes",
        "Connections that wanted a session back.",
    ),
    Described(
        "gw_takeovers_total",
        "counter",
        (),
        "takeovers",
        "Client connections closed because the session's client came on another one.",
    ),
    Described(
        "gw_empty_frames_total",
        "counter",
        (),
        "empty_frames",
        "Empty binary frames from clients; none is passed on.",
    ),
    Described("gw_results_total", "counter", ("kind",), "results", "Results delivered to clients."),
    Described(
        "gw_ignored_audio_bytes_total",
        "counter",
        (),
        "ignored_audio_bytes",
        "Audio that came after the end of its call: after CloseStream, or while it was ended.",
    ),
    Described(
        "gw_stale_results_total",
        "counter",
        (),
        "stale_results",
        "Results dropped because their connection had been given up.",
    ),
    Described(
        "gw_gap_seconds_total",
        "counter",
        ("reason",),
        "gap_seconds",
        "Audio that no final will cover; each gap was told to the client or logged.",
    ),
    Described(
        "gw_replayed_audio_seconds_total",
        "counter",
        (),
        "replayed_audio_seconds",
        "Audio sent to Deepgram once more after a lost connection.",
    ),
    Described(
        "gw_backfills_total",
        "counter",
        ("outcome",),
        "backfills",
        "Holes after an outage that were transcribed beside their call, when that was over.",
    ),
    Described(
        "gw_backfilled_audio_seconds_total",
        "counter",
        (),
        "backfilled_audio_seconds",
        "Audio in such holes that got its finals.",
    ),
    Described(
        "gw_replay_buffer_bytes",
        "gauge",
        (),
        "replay_buffer_bytes",
        "Audio that all sessions keep for replay; looked at every second.",
    ),
    Described(
        "gw_shed_total",
        "counter",
        ("stage",),
        "shed",
        "What was done for want of buffer memory: clients refused, buffers shrunk, sessions closed.",
    ),
    Described(
        "gw_batch_window_seconds",
        "gauge",
        (),
        "batch_window_seconds",
        "How long client sockets are left alone between two reads now; 0: read as they have something.",
    ),
    Described(
        "gw_sessions_catching_up",
        "gauge",
        (),
        "sessions_catching_up",
        "Sessions that send Deepgram a backlog faster than real time, after a lost connection.",
    ),
    Described(
        "gw_session_lag_seconds",
        "gauge",
        (),
        "session_lag_seconds",
        "Of the session that is furthest behind: audio received that no result has reached.",
    ),
    Described(
        "gw_uploads_active",
        "gauge",
        (),
        "uploads_active",
        "Requests with a recording that are not answered yet.",
    ),
    Described("gw_upload_bytes_total", "counter", (), "upload_bytes", "Recordings received from clients."),
    Described(
        "gw_uploads_refused_total",
        "counter",
        ("reason",),
        "uploads_refused",
        "Requests with a recording that the gateway itself refused.",
    ),
    Described(
        "gw_upload_copies_total",
        "counter",
        (),
        "upload_copies",
        "Requests that got the answer to the same request before them; see prerecorded.copies.",
    ),
    Described(
        "gw_recording_attempts_total",
        "counter",
        ("outcome",),
        "recording_attempts",
        "Times that Deepgram was asked for a recording, by its answer's status or why there was none.",
    ),
    Described(
        "gw_spool_bytes", "gauge", (), "spool_bytes", "Recordings on disk; see prerecorded.spool_bytes."
    ),
    Described(
        "gw_accept_wait_seconds", "histogram", (), "accept_wait", "How long clients waited for their 101."
    ),
    Described(
        "gw_upstream_dials_total", "counter", ("outcome",), "dials", "Attempts to connect to Deepgram."
    ),
    Described("gw_dials_waiting", "gauge", (), "dials_waiting", "Dials that wait for their turn."),
    Described(
        "gw_dial_wait_seconds",
        "histogram",
        (),
        "dial_wait",
        "How long dials waited for their turn; see deepgram.max_dials_per_second.",
    ),
    Described(
        "gw_upstream_dial_seconds",
        "histogram",
        (),
        "dial_seconds",
        "Duration of the dials that opened: DNS, TCP, TLS and handshake.",
    ),
    Described(
        "gw_upstream_handshakes_total",
        "counter",
        ("status",),
        "handshakes",
        "Answers to the upstream handshake, by HTTP status.",
    ),
    Described(
        "gw_upstream_breaks_total",
        "counter",
        ("cause",),
        "breaks",
        "Upstream connections that ended in the middle of a session.",
    ),
    Described(
        "gw_finalizes_total",
        "counter",
        (),
        "finalizes",
        "Finalize messages of ours, for channels whose audio had no final for long.",
    ),
    Described(
        "gw_upstream_audio_bytes_total",
        "counter",
        (),
        "upstream_audio_bytes",
        "Audio sent to Deepgram, replayed audio included.",
    ),
    Described(
        "gw_upstream_messages_sent_total",
        "counter",
        (),
        "upstream_messages_sent",
        "WebSocket messages sent to Deepgram.",
    ),
    Described(
        "gw_upstream_messages_received_total",
        "counter",
        (),
        "upstream_messages_received",
        "WebSocket messages received from Deepgram.",
    ),
    Described(
        "gw_upstream_bad_messages_total",
        "counter",
        (),
        "upstream_bad_messages",
        "Messages from Deepgram that could not be understood and were dropped.",
    ),
    Described(
        "gw_upstream_implausible_total",
        "counter",
        (),
        "upstream_implausible",
        "Results whose times cannot be, for the audio that was sent; they were kept from the client.",
    ),
    Described(
        "gw_upstream_repeated_total",
        "counter",
        (),
        "upstream_repeated",
        "Results that said only what was final already, and were dropped.",
    ),
    Described(
        "gw_callbacks_total", "counter", ("outcome",), "callbacks", "Callbacks to clients that were over."
    ),
    Described(
        "gw_callback_attempts_total",
        "counter",
        ("answer",),
        "callback_attempts",
        "Attempts at them, by the receiver's answer.",
    ),
    Described(
        "gw_callback_wait_seconds",
        "histogram",
        (),
        "callback_wait",
        "How long callbacks waited for their first attempt; a receiver that hangs holds up its own only.",
    ),
    Described(
        "gw_callbacks_pending", "gauge", (), "callbacks_pending", "Callbacks that are yet to be delivered."
    ),
    Described("gw_callback_age_seconds", "gauge", (), "callback_age_seconds", "Age of the oldest of these."),
    Described("gw_jobs", "gauge", ("state",), "jobs", "Jobs that the store has, by state."),
    Described("gw_jobs_accepted_total", "counter", (), "jobs_accepted", "Jobs answered with 202."),
    Described("gw_jobs_ended_total", "counter", ("state",), "jobs_ended", "Jobs that ended, by how."),
    Described(
        "gw_job_attempts_total", "counter", ("outcome",), "job_attempts", "Attempts at jobs that ended."
    ),
    Described(
        "gw_job_reruns_total",
        "counter",
        (),
        "job_reruns",
        "Attempts begun again although Deepgram may have done, and billed, the one before.",
    ),
    Described(
        "gw_job_wait_seconds", "histogram", (), "job_wait", "How long jobs that were due waited for a worker."
    ),
    Described("gw_job_seconds", "histogram", (), "job_seconds", "Duration of attempts at jobs."),
    Described(
        "gw_redis_up", "gauge", (), "redis_up", "Whether the Redis of the jobs takes writes; 1 without one."
    ),
    Described(
        "gw_redis_policy_ok",
        "gauge",
        (),
        "redis_policy_ok",
        "Whether its maxmemory-policy is noeviction; with another one jobs may be late.",
    ),
    Described(
        "gw_redis_errors_total",
        "counter",
        ("reason",),
        "redis_errors",
        "Commands to it that came to nothing.",
    ),
    Described(
        "gw_jobs_missing_total", "counter", (), "jobs_missing", "Jobs that were due and unknown to it."
    ),
    Described("gw_loop_lag_seconds", "histogram", (), "loop_lag", "How late the event loop ran a timer."),
    Described(
        "gw_store_up",
        "gauge",
        (),
        "store_up",
        "1 while the database can be written to; 0 also where storing is switched off.",
    ),
    Described(
        "gw_store_queue_depth", "gauge", (), "store_queue_depth", "Writes that wait for the next transaction."
    ),
    Described(
        "gw_store_commit_seconds",
        "histogram",
        (),
        "store_commit",
        "How long a transaction took, which may hold many writes, up to its commit.",
    ),
    Described(
        "gw_store_errors_total",
        "counter",
        ("reason",),
        "store_errors",
        "Writes that were not done.",
    ),
    Described(
        "gw_store_dropped_total",
        "counter",
        ("what",),
        "store_dropped",
        "What was said and is not stored, since the store was down or too slow.",
    ),
    Described(
        "gw_log_lines_dropped_total",
        "counter",
        (),
        "log_lines_dropped",
        "Log lines lost because their reader stalled.",
    ),
    Described(
        "gw_config_generation",
        "gauge",
        (),
        "config_generation",
        "How many times settings have been loaded; 1 after the start.",
    ),
    Described(
        "gw_build_info", "gauge", ("version", "python"), "build_info", "Always 1; its labels say what runs."
    ),
)

PROCESS_METRICS: Final = (
    Described("process_virtual_memory_bytes", "gauge", (), "", "Virtual memory size."),
    Described("process_resident_memory_bytes", "gauge", (), "", "Resident memory size."),
    Described(
        "process_start_time_seconds", "gauge", (), "", "When the process started, in seconds since 1970."
    ),
    Described("process_cpu_seconds_total", "counter", (), "", "User and system CPU time."),
    Described(
        "process_open_fds",
        "gauge",
        (),
        "",
        "Open file descriptors: on uvloop running out of them shows nowhere else.",
    ),
    Described("process_max_fds", "gauge", (), "", "The limit on open file descriptors."),
)
"""What prometheus_client reads from /proc; the names are those that Prometheus' clients share."""


def model_label(model: str | None) -> str:
    """The label for a model as the query names it; Deepgram takes `base` where the query names none."""
    name = model or "base"
    return name if name in MODELS else OTHER


def handshake_label(status: int) -> str:
    """The label for an HTTP status that Deepgram answered a handshake with."""
    return _status_label(status, HANDSHAKE_STATUSES)


def answer_label(status: int) -> str:
    """The label for an HTTP status that Deepgram answered a recording with."""
    return _status_label(status, ATTEMPT_OUTCOMES)


def _status_label(status: int, labels: tuple[str, ...]) -> str:
    exact, group = str(status), f"{status // 100}xx"
    return next((label for label in (exact, group) if label in labels), OTHER)
