"""The HTTP server, over real sockets on loopback."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
import structlog

import inspectd.observe.http as http_module
from inspectd.errors import ConfigError
from inspectd.observe.http import MAX_REQUESTS, HttpServer
from inspectd.observe.ledger import Ledger
from inspectd.observe.metrics import Metrics


class Probe:
    """A probe whose answer the test sets."""

    def __init__(self):
        self.answer = (True, {})

    def __call__(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def health():
    return Probe()


@pytest.fixture
def ready():
    return Probe()


@pytest.fixture
def server(health, ready):
    server = make_server("127.0.0.1:0", health, ready)
    server.start()
    yield server
    assert server.stop(5)


def make_server(bind, health=lambda: (True, {}), ready=lambda: (True, {})):
    return HttpServer(bind, Metrics(Ledger([("cam1", "lid")]), ["cam1"]), health, ready)


def ask(server, path, method="GET", headers=None, body=None):
    """One request: (status, headers, body)."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def connect(server):
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def read_to_end(connection):
    chunks = []
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


def test_metrics_are_served_as_text_and_as_openmetrics(server):
    """Prometheus asks for OpenMetrics, a person with curl gets text."""
    status, headers, body = ask(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'inspectd_frames_captured_total{camera="cam1"} 0.0' in body
    status, headers, body = ask(server, "/metrics?x=1", headers={"Accept": "application/openmetrics-text"})
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_probe_answers_200_or_503_and_says_why(server, health, ready, path):
    """The two paths ask two different questions."""
    probe, other = (health, ready) if path == "/healthz" else (ready, health)
    other.answer = (False, {"other": "dead"})
    assert ask(server, path)[0] == 200
    probe.answer = (False, {"camera cam1": "refused", "engine": "ok"})
    status, headers, body = ask(server, path)
    assert status == 503
    assert headers["Content-Type"].startswith("application/json")
    assert json.loads(body) == {"ok": False, "parts": {"camera cam1": "refused", "engine": "ok"}}


def test_a_probe_never_shows_a_password(server, ready):
    """Its text may come from a library's error with the URL in it."""
    ready.answer = (False, {"cam1": "cannot open rtsp://admin:hunter2@10.0.0.9/live"})
    _, _, body = ask(server, "/readyz")
    assert b"hunter2" not in body
    assert b"10.0.0.9/live" in body


def test_a_probe_that_raises_is_not_taken_for_health(server, health):
    """500, a log line with the traceback, and the next request is served."""
    health.answer = RuntimeError("a defect")
    with structlog.testing.capture_logs() as logs:
        status, _, body = ask(server, "/healthz")
    assert status == 500
    assert b"a defect" not in body
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["http_request_failed"]
    health.answer = (True, {})
    assert ask(server, "/healthz")[0] == 200


def test_the_index_lists_the_paths_and_the_rest_is_not_found(server):
    """A technician who opens the port in a browser finds the way."""
    status, _, body = ask(server, "/")
    assert status == 200
    for path in ("/metrics", "/healthz", "/readyz"):
        assert path.encode() in body
        assert ask(server, path)[0] == 200
    for path in ("/favicon.ico", "/metrics/", "/../etc/passwd", "/healthz%00"):
        assert ask(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_only_get_and_head_are_allowed(server, method):
    """Nothing can be changed here."""
    status, headers, _ = ask(server, "/metrics", method=method)
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"


def test_head_is_get_without_the_body(server):
    """Same status and headers, as monitors expect."""
    status, headers, body = ask(server, "/healthz", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == len(ask(server, "/healthz")[2])


def test_no_answer_tells_versions(server):
    """Neither Python's nor ours, in no kind of answer."""
    for path, method in [("/", "GET"), ("/nowhere", "GET"), ("/", "POST"), ("/", "BREW")]:
        assert ask(server, path, method=method)[1]["Server"] == "inspectd"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET /" + b"x" * 70000 + b"\r\n",
    ],
)
def test_garbage_is_refused_without_a_traceback(server, request_bytes, capfd):
    """With an error of the 400 or 500 family, or a reset where the client had not finished sending."""
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request_bytes)
        assert re.match(rb"(HTTP/1\.1 )?[45]\d\d |$", read_to_end(connection))
    assert ask(server, "/healthz")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_leaves_in_the_middle_costs_nothing(server, capfd):
    """Connection resets are everyday life: no traceback, no thread left over."""
    for _ in range(MAX_REQUESTS * 2):
        with connect(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close() resets
            connection.sendall(b"GET /metrics HTTP/1.1\r\n")
    wait_until(lambda: ask(server, "/healthz")[0] == 200)
    wait_until(lambda: not request_threads())
    assert "Traceback" not in capfd.readouterr().err


def test_a_slow_client_is_cut_off_however_it_dribbles(server, monkeypatch):
    """One byte now and then keeps every single read alive, but the limit is on the whole request."""
    monkeypatch.setattr(http_module, "REQUEST_TIMEOUT_S", 0.8)
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        wait_until(lambda: cut_off_while_dribbling(connection))
    wait_until(lambda: not request_threads())


def test_too_many_at_once_are_refused_and_places_become_free_again(server):
    """MAX_REQUESTS idle connections are served, the next one is told 503 at once."""
    with contextlib.ExitStack() as held:
        for _ in range(MAX_REQUESTS):
            held.enter_context(connect(server))
        wait_until(lambda: len(request_threads()) == MAX_REQUESTS)
        with connect(server) as one_more:
            assert read_to_end(one_more).startswith(b"HTTP/1.1 503 ")
    wait_until(lambda: not request_threads())
    assert ask(server, "/healthz")[0] == 200


def test_stop_ends_requests_in_progress_and_frees_the_port(health, ready):
    """Bounded, callable twice, and a successor can bind the very same port."""
    server = make_server("127.0.0.1:0", health, ready)
    server.start()
    port = urlsplit(server.url).port
    with connect(server) as connection:
        wait_until(request_threads)
        assert server.stop(5)
        assert read_to_end(connection) == b""
    assert server.stop(5)
    wait_until(lambda: not request_threads())
    successor = make_server(f"127.0.0.1:{port}", health, ready)
    successor.start()
    assert ask(successor, "/healthz")[0] == 200
    assert successor.stop(5)


def test_stop_before_start_is_harmless():
    """The clean-up may run when the start-up never came that far."""
    assert make_server("127.0.0.1:0").stop(1)


def test_stop_does_not_wait_for_the_next_turn(monkeypatch):
    """An idle accept is woken up: shutdown has seconds to give to verdicts, not to HTTP."""
    monkeypatch.setattr(http_module._Server, "timeout", 60)
    server = make_server("127.0.0.1:0")
    server.start()
    assert ask(server, "/healthz")[0] == 200
    assert server.stop(10)


def test_ipv6_is_served():
    """On hosts that have it."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = make_server("[::1]:0")
    try:
        server.start()
    except ConfigError as err:
        pytest.skip(f"no IPv6 loopback here: {err}")
    assert server.url.startswith("http://[::1]:")
    assert ask(server, "/healthz")[0] == 200
    assert server.stop(5)


def test_a_port_in_use_is_a_configuration_error(server):
    """It names the key and the address, and exits with 2."""
    bind = urlsplit(server.url).netloc
    with pytest.raises(ConfigError, match=rf"^http\.bind: {bind} is in use; ") as caught:
        make_server(bind).start()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("bind", "why"),
    [
        ("192.0.2.77:9108", "is no address of this machine"),  # TEST-NET-1, nobody's
        ("no such host:9108", "is no address of this machine"),
        (".:9108", "a part of the name is empty"),
        (f"{'a' * 70}:9108", "longer than 63 characters"),
    ],
)
def test_an_address_of_somebody_else_is_a_configuration_error(bind, why):
    """One line that says what is wrong with it."""
    with pytest.raises(ConfigError, match=rf"^http\.bind: {bind}.* {why}"):
        make_server(bind).start()


def test_requests_are_not_logged_above_debug(server):
    """A scrape every few seconds for months does not fill the journal."""
    with structlog.testing.capture_logs() as logs:
        assert ask(server, "/metrics")[0] == 200
        assert ask(server, "/nowhere")[0] == 404
    assert {line["log_level"] for line in logs} <= {"debug"}


def cut_off_while_dribbling(connection):
    """Send one byte more; whether the server has ended the connection."""
    connection.settimeout(0.05)
    try:
        connection.sendall(b"y")
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def request_threads():
    return [thread for thread in threading.enumerate() if thread.name == "http-request"]


def wait_until(condition, timeout_s=15):
    """Threads end by themselves, without an event that a test could wait for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
