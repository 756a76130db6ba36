"""`/metrics`, `/healthz` and `/readyz`: one request per connection, each with a limit in time.

A thread called "http" accepts, at most MAX_REQUESTS short-lived threads answer. A client that sends
or reads slowly is cut off REQUEST_TIMEOUT_S after it connected; it can never hold a thread longer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

import structlog

from inspectd.errors import ConfigError
from inspectd.observe.logs import redacted
from inspectd.observe.metrics import Metrics
from inspectd.workers import LATE_S, Worker

log = structlog.get_logger(__name__)

Probe = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Answers yes or no, and what to show people: why not, above all."""

REQUEST_TIMEOUT_S = 5.0
"""From connection to the last byte. A scrape takes milliseconds; Prometheus itself gives up after 10 s."""
MAX_REQUESTS = 8
"""Requests at a time; one more is told 503 at once and not queued."""
TURN_S = 0.5
"""How often overdue connections are looked for."""

INDEX = (
    "inspectd\n\n/metrics  for Prometheus\n/healthz  200 while the process works\n/readyz   200 while it judges parts\n"
)
JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"


class HttpServer:
    """Serves metrics and health on `bind` (`ADDRESS:PORT`, IPv6 in brackets, port 0 for any free one).

    `health` and `ready` are called in a request's thread, several at a time: they must be quick and
    thread-safe. A probe that raises is answered with 500, which is not 200.
    """

    def __init__(
        self,
        bind: str,
        metrics: Metrics,
        health: Probe,
        ready: Probe,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._bind = bind
        self._metrics = metrics
        self._probes = {"/healthz": health, "/readyz": ready}
        self.worker = Worker("http", self._serve, on_failure)
        self._server: _Server | None = None  # set by start

    def start(self) -> None:
        """Bind, listen, and answer from now on.

        Raises:
            ConfigError: the address cannot be bound.
        """
        self._server = _listen(self._bind, self._answer)
        self.worker.start()

    def stop(self, timeout_s: float) -> bool:
        """Stop accepting, cut off what is being answered; True when the thread is gone."""
        self.worker.signal()
        if self._server is not None:
            self._server.wake()
        return self.worker.stop(timeout_s)

    @property
    def url(self) -> str:
        """`http://ADDRESS:PORT` as bound; only after `start`."""
        assert self._server is not None, "not started"
        host, port = self._server.server_address[:2]
        return (
            f"http://[{host!s}]:{port}" if self._server.address_family == socket.AF_INET6 else f"http://{host!s}:{port}"
        )

    def _serve(self, stop: threading.Event) -> None:
        assert self._server is not None
        with self._server as server:
            while not stop.is_set():
                self.worker.beat(TURN_S + LATE_S)
                server.handle_request()  # returns after one connection, or TURN_S
                if server.exhausted:
                    stop.wait(TURN_S)
                server.cut_off(time.monotonic() - REQUEST_TIMEOUT_S)
        server.cut_off(time.monotonic())

    def _answer(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/metrics":
            body, content_type = self._metrics.exposition(accept)
            return HTTPStatus.OK, content_type, body
        if (probe := self._probes.get(path)) is not None:
            ok, detail = probe()
            status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
            return status, JSON, json.dumps({"ok": ok, "parts": redacted(detail)}).encode() + b"\n"
        if path == "/":
            return HTTPStatus.OK, TEXT, INDEX.encode()
        return HTTPStatus.NOT_FOUND, TEXT, b"not found; / lists what there is\n"


Answer = Callable[[str, str], tuple[HTTPStatus, str, bytes]]


class _Server(socketserver.TCPServer):
    """Accepts in the caller's thread, answers each connection in one of its own, and knows them all.

    Not `http.server.HTTPServer`: that looks its own host name up in the DNS, which may take seconds.
    """

    allow_reuse_address = True  # a restart does not wait for old connections in TIME_WAIT
    request_queue_size = 32
    timeout = TURN_S

    def __init__(self, family: socket.AddressFamily, address: tuple[Any, ...], answer: Answer) -> None:
        self.address_family = family
        self.answer = answer
        self.exhausted = False  # no descriptor or no memory was left for the last who came
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # connection -> monotonic start; guarded by _lock
        super().__init__(address[:2], _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        # Without a descriptor for it a connection stays where it is, and the listener readable: trying again at once
        # would take a whole core from the line, for as long as that lasts.
        try:
            return super().get_request()
        except OSError as err:
            if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._is_exhausted(str(err.strerror))
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if free := len(self._open) < MAX_REQUESTS:
                self._open[request] = time.monotonic()
        if not free:
            with contextlib.suppress(OSError):  # a fresh connection takes these bytes without blocking
                request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self._answer_one, args=(request, client_address), name="http-request", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as err:  # no memory for one more
            self._forget(request)
            self._is_exhausted(str(err))
            self.shutdown_request(request)
        else:
            self.exhausted = False

    def cut_off(self, started_before: float) -> None:
        """Shut connections that are older down: whoever reads or writes them fails at once."""
        with self._lock:
            for request, started in self._open.items():
                if started <= started_before:
                    with contextlib.suppress(OSError):  # it is gone already
                        request.shutdown(socket.SHUT_RDWR)

    def wake(self) -> None:
        """End a wait for the next connection, from any thread: Linux then reports the listener as readable."""
        with contextlib.suppress(OSError):  # closed already
            self.socket.shutdown(socket.SHUT_RDWR)

    def _is_exhausted(self, why: str) -> None:
        if not self.exhausted:
            self.exhausted = True
            log.warning("http_exhausted", why=why)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            log.debug("http_client_gone", error=str(error))
        else:
            log.error("http_request_failed", exc_info=error)

    def _answer_one(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001 - top of a thread
            self.handle_error(request, client_address)
        finally:
            self._forget(request)
            self.shutdown_request(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:  # before it is closed: cut_off must not touch a descriptor that is used anew
            del self._open[request]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_TIMEOUT_S
    error_content_type = TEXT
    error_message_format = "%(code)d %(message)s\n"

    def do_GET(self) -> None:
        try:
            status, content_type, body = self.server.answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
        except Exception:
            log.exception("http_request_failed", path=self.path)
            status, content_type, body = HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"failed; the log says why\n"
        self._send(status, content_type, body)

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"only GET and HEAD\n", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _send(
        self, status: HTTPStatus, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }
        for name, value in (fixed | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "inspectd"  # no versions for strangers

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        log.debug("http_request", client=self.client_address[0], line=format % args)


def _listen(bind: str, answer: Answer) -> _Server:
    host, _, port = bind.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return _Server(family, address, answer)
    except socket.gaierror as err:
        raise ConfigError(f"http.bind: {bind}: {host} is no address of this machine: {err.strerror}") from None
    except UnicodeError:
        why = "a part of the name is empty, or longer than 63 characters"
        raise ConfigError(f"http.bind: {bind}: {host} is no address of this machine: {why}") from None
    except OSError as err:
        why = {
            errno.EADDRINUSE: "is in use; stop the other program or choose another port",
            errno.EADDRNOTAVAIL: "is no address of this machine",
            errno.EACCES: "needs privileges; choose a port above 1023",
        }.get(err.errno or 0, f"cannot be bound: {err.strerror}")
        raise ConfigError(f"http.bind: {bind} {why}") from None
