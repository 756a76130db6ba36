"""`inspectd tail` against a real socket: what it prints, what it notices, and how it ends."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import zmq

from inspectd.errors import UsageError
from inspectd.verdict.schema import CameraStatus, FrameInfo, Heartbeat, Latency, Message, Verdict, encode, timestamp
from inspectd.verdict.tail import Continuity, Received, Subscriber, render, run_tail

TOPIC = "verdict/top/part/"


def verdict(seq: int, boot_id: str = "b00t-one", **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "boot_id": boot_id,
        "seq": seq,
        "camera": "top",
        "roi": "part",
        "verdict": "fail",
        "label": "scratch",
        "score": 0.8125,
        "scores": {"scratch": 0.8125},
        "frame": FrameInfo(index=seq - 1, pts=None, clock="arrival"),
        "captured_at": "2026-01-31T12:00:00.000000Z",
        "published_at": "2026-01-31T12:34:56.789012Z",
        "latency_ms": Latency(decode=1, queue=2, engine=3, total=6.75),
        "model": "m",
        "config": "c",
    }
    return Verdict(**{**fields, **changes})


def heartbeat(seq: int, boot_id: str = "b00t-one", **topics: int) -> Heartbeat:
    newest = {f"verdict/{name}/part/": value for name, value in topics.items()}
    return Heartbeat(boot_id=boot_id, seq=seq, state="ready", topics=newest, published_at=timestamp(time.time()))


def status(seq: int, **changes: Any) -> CameraStatus:
    fields = {"boot_id": "b00t-one", "seq": seq, "camera": "top", "state": "fault", "reason": "stall"}
    return CameraStatus(**{**fields, "published_at": "2026-01-31T12:34:56.789012Z", **changes})


class Lines(io.TextIOBase):
    """A stream whose lines can be waited for."""

    def __init__(self) -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self._part = ""

    def write(self, text: str) -> int:
        *whole, self._part = (self._part + text).split("\n")
        for line in whole:
            self.lines.put(line)
        return len(text)

    def next(self) -> str:
        return self.lines.get(timeout=20)

    def all(self) -> list[str]:
        return [self.lines.get_nowait() for _ in range(self.lines.qsize())]


class Stream:
    """The daemon's side, played message by message; knows when somebody has subscribed."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def await_subscription(self, topic: str) -> None:
        frame = b""
        while frame != b"\x01" + topic.encode():
            assert self._socket.poll(20_000), f"nobody subscribed to {topic}"
            frame = self._socket.recv()

    def send(self, message: Message, encoding: Literal["json", "msgpack"] = "json") -> None:
        match message:
            case Verdict():
                topic = f"verdict/{message.camera}/{message.roi}/"
            case CameraStatus():
                topic = f"status/{message.camera}/"
            case Heartbeat():
                topic = "heartbeat/"
        self._socket.send_multipart([topic.encode(), encode(message, encoding)])

    def send_raw(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    made.close()


class Tail:
    """run_tail in a thread, its output at hand line by line."""

    def __init__(self, stream: Stream, count: int, **options: Any) -> None:
        self.out, self.err = Lines(), Lines()
        self._codes: queue.Queue[int] = queue.Queue()
        self._thread = threading.Thread(
            target=lambda: self._codes.put(
                run_tail(stream.endpoint, count=count, out=self.out, err=self.err, **options)
            ),
            daemon=True,
        )
        self._thread.start()
        topics = sorted({*(options.get("topics") or ("verdict/", "status/")), "heartbeat/"})
        stream.await_subscription(topics[-1])

    def code(self) -> int:
        return self._codes.get(timeout=20)

    def problems(self) -> list[str]:
        """What went to stderr, but for silence: these tests send no heartbeats on time."""
        return [line for line in self.err.all() if "heartbeat from" not in line]


def columns(message: Message, topic: str = TOPIC) -> str:
    return render(Received(topic, b"", message)).plain


class TestColumns:
    def test_a_verdict(self) -> None:
        assert columns(verdict(7)).split() == (
            ["12:34:56.789Z", TOPIC, "7", "fail", "scratch", "0.812", "6.8", "ms", "frame", "6"]
        )

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"reason": "stale", "label": None, "score": None}, ["no_result", "stale"]),
            ({"label": "station", "score": 0.9}, ["no_result", "empty", "station", "0.900"]),
            ({"reason": "camera_down", "label": None, "score": None, "frame": None}, ["no_result", "camera_down"]),
        ],
    )
    def test_no_result_says_why(self, changes: dict[str, Any], words: list[str]) -> None:
        assert columns(verdict(7, verdict="no_result", **changes)).split()[3 : 3 + len(words)] == words

    def test_a_replayed_one_says_so(self) -> None:
        assert columns(verdict(7, replayed=True)).endswith("replayed")
        assert "replayed" not in columns(verdict(7))

    def test_a_status_and_a_heartbeat(self) -> None:
        assert columns(status(2), "status/top/").split() == ["12:34:56.789Z", "status/top/", "2", "fault", "stall"]
        assert columns(heartbeat(9, top=3), "heartbeat/").split()[1:] == (
            ["heartbeat/", "9", "ready", "1", "topic(s),", "boot", "b00t-one"]
        )

    def test_verdicts_stand_out_in_colour(self) -> None:
        styles = {
            kind: str(render(Received(TOPIC, b"", message)).spans[0].style)
            for kind, message in {
                "fail": verdict(1),
                "pass": verdict(1, verdict="pass"),
                "no_result": verdict(1, verdict="no_result", reason="stale"),
            }.items()
        }
        assert styles == {"fail": "bold red", "pass": "green", "no_result": "yellow"}

    def test_nothing_on_the_wire_steers_the_terminal(self) -> None:
        """Escape sequences in a label or a topic come out as harmless signs."""
        line = columns(verdict(1, label="\x1b[2Jgone", camera="x"), "verdict/\x1b]0;title\x07/")
        assert line.isprintable()


class TestPrinting:
    def test_one_line_per_message_heartbeats_unseen(self, stream: Stream) -> None:
        """Not a terminal: no colour codes."""
        tail = Tail(stream, 2)
        for message in (heartbeat(1), verdict(1), heartbeat(2, top=1), status(1)):
            stream.send(message)
        assert tail.code() == 0
        assert [line.split()[1] for line in tail.out.all()] == [TOPIC, "status/top/"]
        assert tail.problems() == []

    @pytest.mark.parametrize("encoding", ["json", "msgpack"])
    def test_json_lines_are_the_messages(self, stream: Stream, encoding: Literal["json", "msgpack"]) -> None:
        """Both encodings are recognised; each line is one message for the next tool in the pipe."""
        tail = Tail(stream, 3, as_json=True)
        sent = [verdict(1), status(1), verdict(2, label="Kratzer – tief")]
        for message in sent:
            stream.send(message, encoding)
        assert tail.code() == 0
        assert [json.loads(line) for line in tail.out.all()] == [json.loads(encode(m, "json")) for m in sent]

    def test_topics_filter(self, stream: Stream) -> None:
        """Only what was asked for; heartbeats too if asked."""
        tail = Tail(stream, 2, topics=["heartbeat/", "status/"])
        for message in (verdict(1), heartbeat(1), status(1)):
            stream.send(message)
        assert tail.code() == 0
        assert [line.split()[1] for line in tail.out.all()] == ["heartbeat/", "status/top/"]

    def test_a_repeat_for_somebody_else_is_not_shown_twice(self, stream: Stream) -> None:
        """Other people's subscriptions make the daemon repeat last values to all."""
        tail = Tail(stream, 3)
        for message in (verdict(4, replayed=True), verdict(5), verdict(5, replayed=True), verdict(6)):
            stream.send(message)
        assert tail.code() == 0
        assert [line.split()[2] for line in tail.out.all()] == ["4", "5", "6"]

    def test_what_cannot_be_read_is_told_and_passed_over(self, stream: Stream) -> None:
        tail = Tail(stream, 1)
        stream.send_raw(TOPIC.encode(), b"\xc1 nonsense")
        stream.send_raw(TOPIC.encode(), b'{"schema":"inspectd.verdict/9"}')
        stream.send_raw(b"verdict/one frame only")
        stream.send(verdict(1))
        assert tail.code() == 0
        complaints = tail.problems()
        assert len(complaints) == 3
        assert all(line.startswith("inspectd: unreadable message: ") for line in complaints)
        assert "inspectd.verdict/9" in complaints[1]


class TestNoticing:
    def test_a_gap(self, stream: Stream) -> None:
        """In the numbers of one topic; the first message of a topic is no gap."""
        tail = Tail(stream, 3)
        for message in (verdict(10), verdict(11), verdict(15)):
            stream.send(message)
        assert tail.code() == 0
        assert tail.problems() == [f"inspectd: {TOPIC} lost 3 message(s): seq 12 to 14"]

    def test_a_lost_tail_by_the_heartbeat(self, stream: Stream) -> None:
        """No further part comes, and still it shows."""
        tail = Tail(stream, 2)
        stream.send(verdict(1))
        stream.send(heartbeat(1, top=2))
        stream.send(heartbeat(2, top=2))
        stream.send(status(1))
        assert tail.code() == 0
        assert tail.problems() == [f"inspectd: {TOPIC} lost 1 message(s): seq 2"]

    def test_a_restart(self, stream: Stream) -> None:
        """Numbers begin again with a new boot_id, which is no gap and no repeat."""
        tail = Tail(stream, 3)
        for message in (verdict(50), verdict(1, boot_id="b00t-two"), verdict(2, boot_id="b00t-two")):
            stream.send(message)
        assert tail.code() == 0
        assert tail.problems() == ["inspectd: the daemon was restarted: boot b00t-one is over, b00t-two has begun"]
        assert [line.split()[2] for line in tail.out.all()] == ["50", "1", "2"]

    def test_silence_and_its_end(self, stream: Stream) -> None:
        """Verdicts alone are no sign of life; the end of the silence is told too."""
        tail = Tail(stream, 1)
        stream.send(heartbeat(1))
        assert tail.err.next() == f"inspectd: no heartbeat from {stream.endpoint} for 1.5 s"
        stream.send(heartbeat(2))
        assert tail.err.next().startswith(f"inspectd: heartbeat from {stream.endpoint} again, after ")
        stream.send(verdict(1))
        assert tail.code() == 0
        assert tail.problems() == []

    def test_a_daemon_that_was_never_there(self, stream: Stream) -> None:
        """Says what to check."""
        tail = Tail(stream, 1)
        assert tail.err.next().endswith("; does the daemon run, and is this its publish.bind?")
        stream.send(status(1))
        assert tail.code() == 0

    def test_what_a_replay_makes_good_is_not_lost(self) -> None:
        """After a reconnection the last value is known again, everything between is lost."""
        continuity = Continuity()
        assert list(continuity.check(TOPIC, verdict(3))) == []
        assert list(continuity.check(TOPIC, verdict(6, replayed=True))) == [f"{TOPIC} lost 2 message(s): seq 4 to 5"]
        assert list(continuity.check("heartbeat/", heartbeat(1, top=6))) == []
        assert continuity.is_repeat(TOPIC, verdict(6, replayed=True))
        assert not continuity.is_repeat(TOPIC, verdict(7))


class TestEndpoint:
    @pytest.mark.parametrize(
        "endpoint",
        [
            "",
            "127.0.0.1:5556",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:70000",
            "http://x:1",
            "ipc://",
            "tcp://*:5556",
            "tcp://no-such-host.invalid:5556",
            f"tcp://{'a' * 70}:5556",
            "tcp://a b:1",
        ],
    )
    def test_a_wrong_one_is_one_line_and_exit_code_2(self, endpoint: str) -> None:
        with pytest.raises(UsageError) as caught:
            run_tail(endpoint, count=1, out=io.StringIO(), err=io.StringIO())
        assert str(caught.value).startswith(repr(endpoint))
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2

    def test_it_comes_back_by_itself(self) -> None:
        """The daemon starts after its subscriber."""
        probe = Stream()
        endpoint = probe.endpoint
        probe.close()
        with Subscriber(endpoint) as subscriber:
            assert subscriber.receive(0.05) is None
            context = zmq.Context()
            late = context.socket(zmq.XPUB)
            late.bind(endpoint)
            assert late.poll(20_000)
            late.send_multipart([TOPIC.encode(), encode(verdict(1), "json")])
            received = subscriber.receive(20)
            late.close(linger=0)
            context.term()
        assert received is not None
        assert (received.topic, received.message) == (TOPIC, verdict(1))


def spawn(endpoint: str, **options: Any) -> subprocess.Popen[str]:
    # Started in the background of a shell, tests ignore SIGINT, and so would every child.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from inspectd.verdict.tail import run_tail; sys.exit(run_tail({endpoint!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        **options,
    )


class TestEnd:
    def test_ctrl_c_is_clean(self, stream: Stream) -> None:
        with spawn(stream.endpoint) as process:
            stream.await_subscription("verdict/")
            stream.send(verdict(1))
            assert process.stdout is not None
            assert process.stdout.readline().split()[1] == TOPIC
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in complaints

    def test_a_closed_pipe_is_clean(self, stream: Stream) -> None:
        """As with `inspectd tail | head -1`."""
        with spawn(stream.endpoint) as process:
            stream.await_subscription("verdict/")
            stream.send(verdict(1))
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            stream.send(verdict(2))
            stream.send(verdict(3))
            complaints = process.stderr.read()
            assert process.wait(20) == 0
        assert complaints == ""

    def test_nothing_heavy_is_imported(self) -> None:
        program = (
            "import sys, inspectd.verdict.tail; "
            "print([name for name in ('cv2', 'openvino', 'torch', 'av', 'rich') if name in sys.modules])"
        )
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert found.stdout.strip() == "[]"
