"""`POST /v1/listen`: take an upload or a URL, listen to all of it, answer or call back."""

from __future__ import annotations

import asyncio
import base64
import time
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import web

from gateway.emulator import prerecorded
from gateway.emulator.containers import Garbage, opener
from gateway.emulator.engines.base import Ear, EngineFull, Word
from gateway.emulator.host import Host
from gateway.emulator.knobs import BatchFault
from gateway.emulator.listen import model_name
from gateway.emulator.query import ListenOptions, QueryError, read_listen
from gateway.emulator.records import UploadRecord
from gateway.emulator.refusals import Refusal, bad_parameter, standard
from gateway.emulator.sound import sniff
from gateway.emulator.tcp import reset
from gateway.emulator.wire import Message, created

_PORTS = (80, 443, 8080, 8443)
_FOREVER = 1e9
_FETCH = aiohttp.ClientTimeout(total=60)


class BatchError(Exception):
    """A request that is answered with an error."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class Batch:
    """The pre-recorded side of the host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._callbacks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Give up callbacks that are still to be made."""
        for task in self._callbacks:
            task.cancel()
        await asyncio.gather(*self._callbacks, return_exceptions=True)

    async def listen(self, request: web.Request) -> web.StreamResponse:
        """The route."""
        request_id, query = self._host.request_id(), request.rel_url.raw_query_string
        record = self._host.records.add_upload(request_id, query, request.headers.items())
        try:
            body = await self._answer(request, record)
        except (BatchError, QueryError) as error:
            record.status, record.ended = error.refusal.status, "answered"
            return refused(error.refusal, request_id)
        except ConnectionError:
            record.ended = record.ended or "left"
            return web.Response(status=400)
        record.status, record.ended = 200, "answered"
        return web.Response(body=body, content_type="application/json", headers={"dg-request-id": request_id})

    async def _answer(self, request: web.Request, record: UploadRecord) -> bytes:
        knobs = self._host.knobs
        denial = self._host.denial(list(request.headers.items()))
        if denial is not None:
            raise BatchError(denial)
        options = read_listen(request.rel_url.raw_query_string, knobs.models, streaming=False)
        if knobs.batch_max_active is not None and self._host.batches >= knobs.batch_max_active:
            raise BatchError(standard(429, retry_after=knobs.retry_after))
        _check_callback(options, knobs.callback_any_port)
        self._host.batches += 1
        try:
            body = await self._body(request, record)
            if options.callback:
                upload = self._upload(body, options)
                self._call_back_later(options, upload, record.request_id)
                return msgspec.json.encode({"request_id": record.request_id})
            upload = self._upload(body, options)
            await _wait(request, knobs.batch_delay / knobs.time_scale)
            return await self._transcribe(upload, options, record.request_id)
        finally:
            self._host.batches -= 1

    async def _body(self, request: web.Request, record: UploadRecord) -> bytes:
        """The audio: as it came, or fetched from the URL in the JSON."""
        body = bytearray()
        fault = self._host.batch_book.matching(record.nth)
        while True:
            if fault is not None and fault.after_bytes is not None and record.received >= fault.after_bytes:
                await _strike(fault, request, record)
            data = await request.content.readany()
            if not data:
                break
            body += data
            record.received += len(data)
            if record.received > self._host.knobs.batch_max_bytes:
                raise BatchError(standard(413))
        if fault is not None:
            await _strike(fault, request, record)
        if request.content_type != "application/json":
            return bytes(body)
        return await _fetch(_url_in(bytes(body), record.request_id))

    def _upload(self, body: bytes, options: ListenOptions) -> prerecorded.Upload:
        if options.format is not None and options.format.sample_rate:
            return prerecorded.Upload(body, options.format)
        found = sniff(body, self._host.knobs.estimated_bytes_per_second)
        if found is None or found.format is None:
            raise BatchError(standard(400))
        try:
            opened = opener(found.container).feed(body) if found.container else None
        except Garbage:
            raise BatchError(standard(400)) from None
        return prerecorded.Upload(body, found.format, found.header_bytes, found.data_bytes, opened)

    async def _transcribe(self, upload: prerecorded.Upload, options: ListenOptions, request_id: str) -> bytes:
        heard = upload.format.channels if options.multichannel else 1
        channels = [await self._hear(upload, channel) for channel in range(heard)]
        name = self._host.engine.model_name(model_name(options.model))
        message = prerecorded.response(request_id, created(time.time()), upload, channels, options, name)
        return msgspec.json.encode(message)

    async def _hear(self, upload: prerecorded.Upload, channel: int) -> list[Word]:
        """All words of one channel."""
        news = asyncio.Event()
        try:
            ear = self._host.engine.listen(upload.format, channel, news.set)
        except EngineFull:
            raise BatchError(standard(429)) from None
        try:
            return await _hear_out(ear, upload.audio, news)
        finally:
            ear.close()

    # Callbacks.

    def _call_back_later(self, options: ListenOptions, upload: prerecorded.Upload, request_id: str) -> None:
        task = asyncio.create_task(self._call_back(options, upload, request_id))
        self._callbacks.add(task)
        task.add_done_callback(self._callbacks.discard)

    async def _call_back(self, options: ListenOptions, upload: prerecorded.Upload, request_id: str) -> None:
        knobs = self._host.knobs
        await asyncio.sleep(knobs.batch_delay / knobs.time_scale)
        try:
            body = await self._transcribe(upload, options, request_id)
        except BatchError as error:
            body = error.refusal.body_bytes(request_id)
        for attempt in range(knobs.callback_retries + 1):
            if attempt:
                await asyncio.sleep(knobs.callback_retry_after / knobs.time_scale)
            if await self._deliver(options, body, request_id):
                return

    async def _deliver(self, options: ListenOptions, body: bytes, request_id: str) -> bool:
        """One attempt; whether the receiver said 2xx."""
        url, headers = _callback_request(options.callback)
        headers |= {"dg-token": self._host.knobs.callback_token, "dg-request-id": request_id}
        headers["content-type"] = "application/json"
        try:
            async with (
                aiohttp.ClientSession(timeout=_FETCH) as session,
                session.request(options.callback_method, url, data=body, headers=headers) as response,
            ):
                return 200 <= response.status < 300
        except (aiohttp.ClientError, TimeoutError):
            return False


async def _strike(fault: BatchFault, request: web.Request, record: UploadRecord) -> None:
    if fault.kind == "refuse":
        raise BatchError(standard(fault.status, fault.body, fault.retry_after))
    if fault.kind == "stall":
        await _wait(request, _FOREVER)
    record.ended = "reset"
    if request.transport is not None:
        reset(request.transport)
    raise ConnectionResetError


async def _wait(request: web.Request, seconds: float) -> None:
    """Raises ConnectionResetError when the client leaves meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(left, 0.02))
        if request.transport is None:
            raise ConnectionResetError


def refused(refusal: Refusal, request_id: str) -> web.Response:
    """An error in Deepgram's shape."""
    headers = dict(refusal.headers(request_id))
    return web.Response(body=refusal.body_bytes(request_id), status=refusal.status, headers=headers)


async def _hear_out(ear: Ear, audio: bytes, news: asyncio.Event) -> list[Word]:
    for at in range(0, len(audio), 1 << 18):
        ear.feed(audio[at : at + (1 << 18)])
        await asyncio.sleep(0)
    ear.flush(hard=True)
    while not ear.settled:
        await news.wait()
        news.clear()
    return ear.take()


def _check_callback(options: ListenOptions, any_port: bool) -> None:
    if not options.callback:
        return
    parts = urlsplit(options.callback)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BatchError(bad_parameter("callback: not an http or https URL"))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if not any_port and port not in _PORTS:
        raise BatchError(bad_parameter(f"callback: port {port} is not one of 80, 443, 8080, 8443"))
    if options.callback_method not in ("POST", "PUT", "GET", "DELETE"):
        raise BatchError(bad_parameter(f"callback_method: unknown variant `{options.callback_method}`"))


def _callback_request(callback: str) -> tuple[str, dict[str, str]]:
    """The URL without the credentials in it, and the header that carries them."""
    parts = urlsplit(callback)
    if parts.username is None:
        return callback, {}
    secret = base64.b64encode(f"{parts.username}:{parts.password or ''}".encode()).decode()
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return bare.geturl(), {"authorization": f"Basic {secret}"}


def _url_in(body: bytes, request_id: str) -> str:
    """The URL of a JSON body."""
    try:
        message: Message = msgspec.json.decode(body, type=dict)
    except msgspec.DecodeError as error:
        raise BatchError(_invalid_json(str(error), request_id)) from error
    if not isinstance(message.get("url"), str):
        raise BatchError(_invalid_json("Json deserialize error: missing field `url`", request_id))
    return str(message["url"])


def _invalid_json(details: str, request_id: str) -> Refusal:
    shape = {
        "category": "INVALID_JSON",
        "message": "Invalid JSON submitted.",
        "details": details,
        "request_id": request_id,
    }
    return Refusal(400, "INVALID_JSON", "Invalid JSON submitted.", msgspec.json.encode(shape).decode())


async def _fetch(url: str) -> bytes:
    if urlsplit(url).scheme not in ("http", "https"):
        raise BatchError(_remote("The URL must be http or https."))
    try:
        async with aiohttp.ClientSession(timeout=_FETCH) as session, session.get(url) as response:
            if response.status != 200:
                raise BatchError(_remote(f"The remote server answered {response.status}."))
            return await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BatchError(
            _remote(f"The remote server could not be reached ({type(error).__name__}).")
        ) from error


def _remote(why: str) -> Refusal:
    return Refusal(400, "REMOTE_CONTENT_ERROR", f"Could not fetch the media at the URL. {why}")
