"""One typed, immutable tree of settings; each key has its default and its one-line reason here only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ServerConfig(_Section, frozen=True):
    host: Annotated[str, Meta(description="Address of the client port.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Client port; 0 lets the kernel choose.")] = 8080
    reuse_port: Annotated[
        bool,
        Meta(
            description="Share the client port with other gateways of this host, a process for each core: "
            "the kernel deals out the calls. Each needs a sidecar port of its own."
        ),
    ] = False
    insecure: Annotated[
        bool, Meta(description="Allow auth.mode 'none' on addresses other than loopback, of either port.")
    ] = False
    origins: Annotated[
        tuple[str, ...],
        Meta(
            description='Origins of browser pages that may open calls, beside this machine\'s; "*" for any.'
        ),
    ] = ()
    hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Names by which either port may be read over HTTP (Host), beside IP addresses, "
            'localhost and, beyond loopback, names without a dot; "*" for any. By others a GET gets 421.'
        ),
    ] = ()
    batch_ms: Annotated[
        Annotated[int, Meta(ge=0, le=250)] | Literal["auto"],
        Meta(
            description="Read each client so often, in milliseconds, and send what came at once; 0: whenever "
            'something comes; "auto": 0 while there is little to do, up to 100 under load.'
        ),
    ] = "auto"
    max_message_bytes: Annotated[
        int, Meta(ge=1024, description="Largest message from a client; larger ones are closed with 1009.")
    ] = 1_048_576
    handshake_timeout: Annotated[
        float, Meta(gt=0, description="Seconds a client has to send its complete request headers.")
    ] = 10.0
    max_connections: Annotated[
        int, Meta(ge=1, description="Client connections at once; more are answered 503 with Retry-After.")
    ] = 4096
    buffer_memory: Annotated[
        int,
        Meta(
            ge=1_048_576,
            description="Bytes that the replay buffers of all calls may hold together; a thousand calls of "
            "mono G.711 hold that much when Deepgram has been gone for two minutes.",
        ),
    ] = 1_073_741_824
    write_buffer_bytes: Annotated[
        int,
        Meta(ge=65536, description="Bytes a client may leave unread (pongs included) before it is cut off."),
    ] = 1_048_576
    drain: Annotated[
        float, Meta(ge=0, description="Seconds that live calls get to end by themselves after SIGTERM.")
    ] = 30.0


class SidecarConfig(_Section, frozen=True):
    host: Annotated[str, Meta(description="Address of the sidecar port.")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Health, metrics and HTTP API port; 0 lets the kernel choose.")
    ] = 8081
    header_timeout: Annotated[
        float, Meta(gt=0, description="Seconds an HTTP client has to send its complete request headers.")
    ] = 10.0
    max_observers: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="Most who watch live calls at once (/v1/sessions/{id}/events), and as many who "
            "watch jobs.",
        ),
    ] = 100


class RegionConfig(_Section, frozen=True):
    name: Annotated[str, Meta(min_length=1, description="The region's name in metrics and logs.")] = "global"
    url: Annotated[
        str, Meta(description="Base URL; http:// for self-hosted or loopback. ws(s):// is derived from it.")
    ] = "https://api.deepgram.com"


class DeepgramConfig(_Section, frozen=True):
    api_key_file: Annotated[
        str,
        Meta(description="File with the API key; else credential deepgram_api_key, else $DEEPGRAM_API_KEY."),
    ] = ""
    dial_timeout: Annotated[
        float, Meta(gt=0, description="Seconds for one dial: DNS, TCP, TLS and the WebSocket handshake.")
    ] = 5.0
    max_dials_per_second: Annotated[
        float,
        Meta(
            ge=1,
            description="Most dials that begin in a second, over all calls. After a blackout 4096 calls are "
            "back within 82 s at 50, inside the 120 s that they are buffered for.",
        ),
    ] = 50.0
    proxy: Annotated[
        str, Meta(description="Egress HTTP CONNECT proxy, http://[user:password@]host:port; empty for none.")
    ] = ""
    ca_file: Annotated[
        str, Meta(description="PEM file of extra certificate authorities, for self-hosted Deepgram.")
    ] = ""
    max_message_bytes: Annotated[
        int, Meta(ge=65536, description="Largest message from Deepgram; a larger one ends that connection.")
    ] = 4_194_304
    regions: Annotated[
        tuple[RegionConfig, ...],
        Meta(
            min_length=1, description="Where to dial, first choice first; the next one after a failed dial."
        ),
    ] = (RegionConfig(),)


class SessionConfig(_Section, frozen=True):
    accept_wait_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=8000,
            description="Most that the 101 waits for Deepgram: a lost SYN (1 s) and four slow round trips; "
            "well inside the 10 s that client libraries wait.",
        ),
    ] = 2000
    client_idle: Annotated[
        float,
        Meta(ge=0, description="Seconds without a client frame before it is closed like NET-0001; 0 = off."),
    ] = 10.0
    keepalive: Annotated[
        float,
        Meta(ge=1, le=5, description="Seconds without upstream traffic before KeepAlive (Flux: a ping)."),
    ] = 4.0
    pace: Annotated[
        float, Meta(ge=1.0, le=1.25, description="Most that goes upstream, in seconds of audio per second.")
    ] = 1.25
    pace_burst: Annotated[
        float, Meta(ge=0.1, le=1.0, description="Seconds of audio that may go upstream ahead of the pace.")
    ] = 1.0
    catch_up_pace: Annotated[
        float, Meta(ge=1.0, le=1.25, description="The pace while audio is replayed after a lost connection.")
    ] = 1.2
    catch_up: Annotated[
        Literal["serial", "backfill"],
        Meta(
            description="After an outage: first what was missed, then what is said now (serial); or both at "
            "once, on two connections (backfill). A client may choose by gw_catch_up."
        ),
    ] = "serial"
    backfill_after: Annotated[
        float,
        Meta(ge=2, description="Seconds without finals that are worth a connection of their own (backfill)."),
    ] = 5.0
    backfill_hold: Annotated[
        float,
        Meta(
            gt=0,
            description="Seconds for which results may be held until what was missed is transcribed; then "
            "the rest of it is given up.",
        ),
    ] = 120.0
    buffer: Annotated[
        float, Meta(ge=5, description="Seconds of audio kept for replay until Deepgram has finalised it.")
    ] = 120.0
    buffer_bytes: Annotated[
        int,
        Meta(
            ge=65536, description="The same bound in bytes, for audio without a byte clock and many channels."
        ),
    ] = 16_777_216
    seam_strategy: Annotated[
        Literal["hybrid", "preroll", "exact"],
        Meta(
            description="Where a new connection begins: in the silence before the last final's end, else a "
            "pre-roll before it (hybrid); always the pre-roll; or exactly at that end."
        ),
    ] = "hybrid"
    preroll: Annotated[
        float,
        Meta(ge=0, le=10, description="Seconds of final audio kept and heard again, so that no word is cut."),
    ] = 2.0
    allow_callback: Annotated[
        bool,
        Meta(
            description="Let callers have results sent to an address of theirs (callback=), those of "
            "POST /v1/listen too. Such a call ends when its connection to Deepgram is lost: another one "
            "would call back anew, from zero."
        ),
    ] = False
    annotate: Annotated[
        bool,
        Meta(
            description="Tell clients of gaps and new connections in an extra key, gateway, on a result; "
            "without it Metadata does not say either that it is incomplete."
        ),
    ] = True
    overflow: Annotated[
        Literal["drop_oldest", "pause", "fail"],
        Meta(
            description="When the buffer is full: give up the oldest audio and say so, stop reading the "
            "client, or close it with 1013."
        ),
    ] = "drop_oldest"
    stall: Annotated[
        float,
        Meta(
            ge=3,
            description="Seconds of flowing audio without progress of results before a connection is "
            "replaced, pauses not counted; four times that where the client asked for no interims.",
        ),
    ] = 10.0
    max_lag: Annotated[
        float,
        Meta(
            ge=5,
            description="Seconds that results may trail the audio sent before it is replaced too; four times "
            "that where the client asked for no interims.",
        ),
    ] = 20.0
    finalize_after: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds of a channel's audio without a final after which a Finalize of ours asks "
            "for one; 0 = never.",
        ),
    ] = 20.0
    rotate: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds after which a connection to Deepgram is replaced, at the end of an "
            "utterance or a tenth later, where audio can be sent again; 0 = never.",
        ),
    ] = 21_600.0
    force_interims: Annotated[
        bool,
        Meta(
            description="Ask Deepgram for interims even where the client does not (it does not get them), so "
            "that a stalled connection is noticed sooner."
        ),
    ] = False
    backoff_base: Annotated[
        float, Meta(gt=0, description="First ceiling of the full-jitter backoff between dials, in seconds.")
    ] = 0.5
    backoff_cap: Annotated[float, Meta(gt=0, description="Highest ceiling of that backoff, in seconds.")] = (
        5.0
    )
    finish: Annotated[
        float,
        Meta(
            gt=0,
            description="Seconds that Deepgram may be silent before its last results are given up, "
            "once all audio went up.",
        ),
    ] = 10.0
    max_messages_per_second: Annotated[
        float,
        Meta(
            ge=50,
            description="Frames of a client, pings and fragments included, beyond which it is read more "
            "slowly; of these, four seconds' worth may come at once. 20 ms frames are 50, the blocks of "
            "a browser's AudioWorklet 375.",
        ),
    ] = 500.0
    max_finalizes_per_second: Annotated[
        float,
        Meta(
            ge=1,
            description="Finalizes of a client beyond which it is read more slowly; of these, ten seconds' "
            "worth may come at once.",
        ),
    ] = 10.0
    client_queue_bytes: Annotated[
        int, Meta(ge=65536, description="Results held for a client that reads too slowly.")
    ] = 1_048_576
    client_slow: Annotated[
        float,
        Meta(gt=0, description="Seconds a client may leave results unread before it is closed with 1013."),
    ] = 10.0


class ResumeConfig(_Section, frozen=True):
    enabled: Annotated[
        bool, Meta(description="Let clients that ask for it (gw_resume) come back to their session.")
    ] = True
    window: Annotated[
        float, Meta(gt=0, le=3600, description="Seconds that a session waits for its client to come back.")
    ] = 120.0
    hold_upstream: Annotated[
        float,
        Meta(ge=0, description="Seconds of that in which the connection to Deepgram is kept open."),
    ] = 15.0
    ack_every_ms: Annotated[
        int, Meta(ge=50, description="Least time between two acknowledgements of audio.")
    ] = 1000
    journal_bytes: Annotated[
        int, Meta(ge=4096, description="Results kept for a client that comes back, with `window`.")
    ] = 1_048_576
    max_detached: Annotated[
        int,
        Meta(
            ge=0,
            description="Sessions of one principal that wait for their client; the oldest makes room.",
        ),
    ] = 64


class RouteConfig(_Section, frozen=True):
    sync_below: Annotated[
        float, Meta(gt=0, description="Seconds of audio: what is shorter is transcribed at once (mode=auto).")
    ] = 60.0
    async_above: Annotated[
        float, Meta(gt=0, description="Seconds of audio: what is longer becomes a job.")
    ] = 300.0
    patience: Annotated[
        float,
        Meta(gt=0, description="Seconds after which what is transcribed at once becomes a job after all."),
    ] = 120.0
    between: Annotated[
        Literal["sync", "async"], Meta(description="The way of what is neither shorter nor longer.")
    ] = "sync"
    assumed_bytes_per_second: Annotated[
        float,
        Meta(
            ge=500,
            description="Bytes of a second of audio whose duration nobody can tell: 32 kbit/s, so that what "
            "is taken for short is short.",
        ),
    ] = 4000.0


class CallbackConfig(_Section, frozen=True):
    secrets_file: Annotated[
        str,
        Meta(
            description="File with the secret that signs callbacks: whsec_ and 24 to 64 bytes in base64; on "
            "a second line the one before it, while receivers change over. Else credential callback_secrets; "
            "without either no callback is taken."
        ),
    ] = ""
    allow_http: Annotated[
        bool, Meta(description="Take http:// addresses from callers, too; transcripts go there unencrypted.")
    ] = False
    ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65535)], ...],
        Meta(min_length=1, description="Ports that callers' addresses may name."),
    ] = (443, 8443, 80, 8080)
    allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks, addresses and host names that callers may name though they are private: "
            "10.0.0.0/8, hooks.internal. Never the metadata services, never the gateway itself."
        ),
    ] = ()
    ca_file: Annotated[
        str, Meta(description="PEM file of extra certificate authorities, for receivers of your own.")
    ] = ""
    public_url: Annotated[
        str,
        Meta(
            description="Where Deepgram reaches this gateway, with a port of 80, 443, 8080 or 8443, for "
            "mode=callback and for recordings that are too long for one request; empty: not at all."
        ),
    ] = ""
    key_id: Annotated[
        str,
        Meta(
            description="The identifier of the Deepgram API key, which its callbacks show (dg-token); empty: "
            "the secret in their path is all that is asked for."
        ),
    ] = ""
    wait: Annotated[
        float,
        Meta(gt=0, description="Seconds that a job waits for Deepgram's callback before it is tried again."),
    ] = 3600.0
    session_url: Annotated[
        str, Meta(description="Where to tell the end of each live call; empty for nowhere.")
    ] = ""
    timeout: Annotated[
        float, Meta(gt=0, le=60, description="Seconds for one attempt, the receiver's answer included.")
    ] = 10.0
    per_host: Annotated[int, Meta(ge=1, le=100, description="Most callbacks under way to one receiver.")] = 8
    concurrency: Annotated[int, Meta(ge=1, description="Most callbacks under way.")] = 256
    backoff_seconds: Annotated[
        float, Meta(gt=0, description="Wait before a second attempt; it doubles up to an hour, with jitter.")
    ] = 5.0
    give_up: Annotated[
        float, Meta(gt=0, description="Seconds from the first attempt's turn after which no other is made.")
    ] = 86_400.0
    keep: Annotated[
        float, Meta(gt=0, description="Seconds that callbacks are kept for inspection when they are over.")
    ] = 604_800.0


class StoreConfig(_Section, frozen=True):
    url: Annotated[
        str,
        Meta(
            description="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE; empty: gateway.db in "
            "$STATE_DIRECTORY, else $XDG_STATE_HOME/gateway, else ~/.local/state/gateway; 'none': nothing "
            "is stored, and there are no jobs."
        ),
    ] = ""
    live: Annotated[bool, Meta(description="Store what is said in live calls.")] = True
    prerecorded: Annotated[
        bool, Meta(description="Store transcripts of recordings; a job's result is kept with the job anyway.")
    ] = True
    retention_days: Annotated[
        float, Meta(ge=0, description="Days after which transcripts are deleted; 0: never.")
    ] = 30.0
    migrate: Annotated[
        Literal["auto", "always", "never"],
        Meta(
            description="Change the tables at the start where this version needs other ones. auto: those of "
            "SQLite; of PostgreSQL only an empty database, since other hosts may still use the old tables."
        ),
    ] = "auto"


class PrerecordedConfig(_Section, frozen=True):
    spool_dir: Annotated[
        str,
        Meta(
            description="Where uploads wait, in files that only this user can read; empty: the service's own "
            "$STATE_DIRECTORY, else a private folder where the system keeps temporary files."
        ),
    ] = ""
    spool_url: Annotated[
        str,
        Meta(
            description="Where recordings of jobs are kept instead once they are here, for workers on other "
            "hosts: s3://BUCKET/PREFIX of any store that speaks S3. Credentials, region and endpoint come "
            "from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL."
        ),
    ] = ""
    spool_bytes: Annotated[
        int, Meta(ge=1_048_576, description="Bytes that all of them may have there together.")
    ] = 17_179_869_184
    max_sync_bytes: Annotated[
        int, Meta(ge=1024, description="Largest upload that is answered at once; a larger one gets 413.")
    ] = 67_108_864
    max_uploads: Annotated[
        int, Meta(ge=1, description="Uploads at once; more are answered 503 with Retry-After.")
    ] = 100
    min_upload_rate: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes per second that an upload must bring on average, after 10 s; one that does "
            "not gets 408.",
        ),
    ] = 8192
    deadline: Annotated[
        float,
        Meta(
            gt=0,
            description="Seconds for a request that is answered at once, upload and retries included; "
            "Deepgram gives up after 600.",
        ),
    ] = 600.0
    attempts: Annotated[
        int,
        Meta(
            ge=1,
            description="How often Deepgram is asked at most, where it answers 408, 429 or 5xx but 504, or "
            "the connection breaks.",
        ),
    ] = 3
    part_seconds: Annotated[
        float,
        Meta(
            ge=10,
            description="Seconds of the longest part of a recording that is too long for one request and is "
            "cut at silence.",
        ),
    ] = 600.0
    copies: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds for which the same request again gets the answer of the first, and for "
            "which that goes on when its client has left: an SDK's own retries cost one transcription. "
            "0 = off; a request with an Idempotency-Key has a day.",
        ),
    ] = 30.0


class JobsConfig(_Section, frozen=True):
    backend: Annotated[
        Literal["embedded", "fleet"],
        Meta(
            description="What hands jobs to workers. embedded: the store itself, nothing to install; fleet: "
            "BullMQ on Redis or Valkey, for workers on other hosts (`gateway worker`)."
        ),
    ] = "embedded"
    work: Annotated[
        bool, Meta(description="Run jobs inside `gateway serve`, too; else only `gateway worker` does.")
    ] = True
    profile: Annotated[
        Literal["default", "enterprise"],
        Meta(
            description="What `concurrency` and `attempts` count. default: all, and they are 10 and 3 while "
            "they are 0; enterprise: each of deepgram.regions is a pool with its own, 20 and 6 (five "
            "retries), and when those at a job are used up it is the next region's."
        ),
    ] = "default"
    concurrency: Annotated[
        int, Meta(ge=0, le=1000, description="Jobs that a worker runs at once; 0: by the profile.")
    ] = 0
    attempts: Annotated[
        int, Meta(ge=0, le=100, description="Attempts at a job before it has failed; 0: by the profile.")
    ] = 0
    starts_per_minute: Annotated[
        int, Meta(ge=0, description="Most jobs that a worker starts in any 60 s; 0: no limit.")
    ] = 50
    backoff_seconds: Annotated[
        float,
        Meta(gt=0, description="Seconds before the second attempt, give or take a fifth; then doubled."),
    ] = 5.0
    attempt_timeout: Annotated[
        float, Meta(gt=0, description="Seconds that one attempt may take, its upload included.")
    ] = 1800.0
    lease: Annotated[
        float,
        Meta(
            ge=0.3,
            description="Seconds after which the job of a worker that gives no sign of life is another's; a "
            "third of it passes between two signs.",
        ),
    ] = 30.0
    keep_hours: Annotated[
        float, Meta(gt=0, description="Hours for which succeeded and cancelled jobs are kept.")
    ] = 24.0
    keep_failed_hours: Annotated[
        float,
        Meta(
            gt=0,
            description="Hours for which failed jobs are kept, with their audio, to be looked at and "
            "retried.",
        ),
    ] = 336.0
    max_upload_bytes: Annotated[
        int, Meta(ge=1024, description="Largest recording that a job is made of; a larger one gets 413.")
    ] = 2_147_483_648
    upload_timeout: Annotated[
        float, Meta(gt=0, description="Seconds that such an upload may take; a longer one gets 408.")
    ] = 7200.0
    most_in_request: Annotated[
        int, Meta(ge=1, le=10_000, description="Most jobs that one request may bring.")
    ] = 1000
    redis: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="Redis or Valkey for `fleet`, redis[s]://[user:password@]host:port; of a "
            "cluster, some of its nodes.",
        ),
    ] = ("redis://127.0.0.1:6379",)
    redis_cluster: Annotated[bool, Meta(description="Those are nodes of a cluster.")] = False
    redis_prefix: Annotated[
        str,
        Meta(
            min_length=1,
            description="What the keys of this queue begin with; a cluster needs a {hash tag}, to keep them "
            "on one of its masters.",
        ),
    ] = "{gateway}"


class AuthConfig(_Section, frozen=True):
    mode: Annotated[
        Literal["none", "keys", "jwt"],
        Meta(
            description="Who may call. 'none': anyone who reaches the port, so loopback only; the others are "
            "refused in this version."
        ),
    ] = "none"
    upstream: Annotated[
        Literal["gateway", "client"],
        Meta(
            description="Whose credential Deepgram sees: the gateway's key, or the client's own, unchanged."
        ),
    ] = "gateway"


class LogConfig(_Section, frozen=True):
    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level written.")
    ] = "info"
    format: Annotated[
        Literal["json", "console"],
        Meta(description="json for machines; console only for a developer's terminal."),
    ] = "json"


class Config(_Section, frozen=True):
    server: ServerConfig = ServerConfig()
    sidecar: SidecarConfig = SidecarConfig()
    deepgram: DeepgramConfig = DeepgramConfig()
    session: SessionConfig = SessionConfig()
    resume: ResumeConfig = ResumeConfig()
    route: RouteConfig = RouteConfig()

    callback: CallbackConfig = CallbackConfig()
    store: StoreConfig = StoreConfig()
    prerecorded: PrerecordedConfig = PrerecordedConfig()
    jobs: JobsConfig = JobsConfig()
    auth: AuthConfig = AuthConfig()
    log: LogConfig = LogConfig()
