"""`inspectd tail` against a line: what it prints, what it notices, and how it ends."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_line import FakeLine, unused_endpoint

from inspectd.client import Health, Keys, Lost, Received, Restarted, Unreadable
from inspectd.client import tail as tail_module
from inspectd.client.columns import render
from inspectd.client.tail import _Watch, run_tail
from inspectd.errors import UsageError
from inspectd.verdict.schema import CameraStatus, FrameInfo, Heartbeat, Latency, Message, Verdict, encode

TOPIC = "verdict/top/part/"
AT = "2026-01-31T12:34:56.789012Z"
FAST = 0.3


def verdict(seq: int, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "boot_id": "b00t-one",
        "seq": seq,
        "camera": "top",
        "roi": "part",
        "verdict": "fail",
        "label": "scratch",
        "score": 0.8125,
        "scores": {"scratch": 0.8125},
        "frame": FrameInfo(index=seq - 1, pts=None, clock="arrival"),
        "captured_at": "2026-01-31T12:00:00.000000Z",
        "published_at": AT,
        "latency_ms": Latency(decode=1, queue=2, engine=3, total=6.75),
        "model": "m",
        "config": "c",
    }
    return Verdict(**{**fields, **changes})


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


@pytest.fixture
def line() -> Iterator[FakeLine]:
    with FakeLine(heartbeat_s=FAST) as made:
        yield made


class Tail:
    """run_tail in a thread, its output at hand line by line."""

    def __init__(self, line: FakeLine, count: int, **options: Any) -> None:
        self.out, self.err = Lines(), Lines()
        self._codes: queue.Queue[int] = queue.Queue()
        options = {"control": line.control, "count": count, "out": self.out, "err": self.err, **options}
        threading.Thread(target=lambda: self._codes.put(run_tail(line.verdicts, **options)), daemon=True).start()
        for topic in {*(options.get("topics") or ("verdict/", "part/", "status/")), "heartbeat/"}:
            line.await_subscriber(topic)

    def code(self) -> int:
        return self._codes.get(timeout=20)


def columns(message: Message, topic: str = TOPIC, *, recovered: bool = False) -> str:
    return render(Received(topic, message, b"", 0.0, recovered)).plain


class TestColumns:
    def test_a_verdict(self) -> None:
        assert columns(verdict(7)).split() == (
            ["12:34:56.789Z", TOPIC, "7", "fail", "scratch", "0.812", "6.8", "ms", "frame", "6"]
        )

    def test_what_a_trigger_asked_for(self) -> None:
        assert columns(verdict(7, part_id="p7", trigger_id="t1")).endswith("part p7  trigger t1")

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

    def test_what_is_not_live_says_so(self) -> None:
        assert columns(verdict(7, replayed=True)).endswith("replayed")
        assert columns(verdict(7, replayed=True), recovered=True).endswith("recovered")
        assert columns(verdict(7)).endswith("frame 6")

    def test_a_part(self, line: FakeLine) -> None:
        words = columns(line.part("fail"), "part/top/part/").split()
        assert words[1:] == ["part/top/part/", "1", "fail", "scratch", "0.990", "3", "frame(s)", "10", "to", "12"]

    def test_a_status_and_a_heartbeat(self) -> None:
        status = CameraStatus(boot_id="b00t-one", seq=2, camera="top", state="fault", reason="stall", published_at=AT)
        assert columns(status, "status/top/").split() == ["12:34:56.789Z", "status/top/", "2", "fault", "stall"]
        heartbeat = Heartbeat(boot_id="b00t-one", seq=9, state="ready", topics={TOPIC: 3}, published_at=AT)
        assert columns(heartbeat, "heartbeat/").split()[1:] == (
            ["heartbeat/", "9", "ready", "1", "topic(s),", "boot", "b00t-one"]
        )

    def test_verdicts_stand_out_in_colour(self) -> None:
        messages = {
            "fail": verdict(1),
            "pass": verdict(1, verdict="pass"),
            "no_result": verdict(1, verdict="no_result", reason="stale"),
        }
        styles = {kind: str(render(Received(TOPIC, m, b"", 0.0)).spans[0].style) for kind, m in messages.items()}
        assert styles == {"fail": "bold red", "pass": "green", "no_result": "yellow"}

    def test_nothing_on_the_wire_steers_the_terminal(self) -> None:
        """Escape sequences in a label or a topic come out as harmless signs."""
        assert columns(verdict(1, label="\x1b[2Jgone", camera="x"), "verdict/\x1b]0;title\x07/").isprintable()


class TestPrinting:
    def test_one_line_per_message_heartbeats_unseen(self, line: FakeLine) -> None:
        """Not a terminal: no colour codes."""
        tail = Tail(line, 3)
        line.verdict()
        line.part()
        line.beat()
        line.status()
        assert tail.code() == 0
        assert [shown.split()[1] for shown in tail.out.all()] == [TOPIC, "part/top/part/", "status/top/"]
        assert tail.err.all() == []

    @pytest.mark.parametrize("encoding", ["json", "msgpack"])
    def test_json_lines_are_the_messages(self, encoding: Any) -> None:
        """Both encodings are recognised; each line is one message for the next tool in the pipe."""
        with FakeLine(encoding=encoding) as line:
            tail = Tail(line, 2, as_json=True)
            sent = [line.verdict("fail", label="Kratzer – tief"), line.status()]
            assert tail.code() == 0
        assert [json.loads(shown) for shown in tail.out.all()] == [json.loads(encode(m, "json")) for m in sent]

    def test_topics_filter(self, line: FakeLine) -> None:
        """Only what was asked for; heartbeats too if asked."""
        line.pause_heartbeats()
        tail = Tail(line, 2, topics=["heartbeat/", "status/"])
        line.verdict()
        line.beat()
        line.status()
        assert tail.code() == 0
        assert [shown.split()[1] for shown in tail.out.all()] == ["heartbeat/", "status/top/"]

    def test_a_repeat_for_somebody_else_is_not_shown_twice(self, line: FakeLine) -> None:
        """Other people's subscriptions make the daemon repeat last values to all."""
        line.verdict()
        tail = Tail(line, 3)
        line.verdict()
        line.repeat(TOPIC)
        line.verdict()
        assert tail.code() == 0
        assert [shown.split()[2] for shown in tail.out.all()] == ["1", "2", "3"]

    def test_what_was_missed_is_fetched(self, line: FakeLine) -> None:
        tail = Tail(line, 3)
        line.verdict()
        with line.losing():
            line.verdict()
        line.verdict()
        assert tail.code() == 0
        shown = tail.out.all()
        assert [text.split()[2] for text in shown] == ["1", "2", "3"]
        assert shown[1].endswith("recovered")
        assert tail.err.all() == []


class TestNoticing:
    def test_what_is_wrong_is_a_line_each(self) -> None:
        """As the client tells it."""
        err = Lines()
        watch = _Watch("tcp://x:1", err)
        events = [
            (Health("connecting"), []),
            (Health(None), []),
            (Lost(TOPIC, "b", 12, 14), [f"{TOPIC} lost 3 message(s): seq 12 to 14"]),
            (Lost(TOPIC, "b", 2, 2), [f"{TOPIC} lost 1 message(s): seq 2"]),
            (
                Restarted("b00t-one", "b00t-two"),
                ["the daemon was restarted: boot b00t-one is over, b00t-two has begun"],
            ),
            (Unreadable("'x\x1b': nonsense"), ["unreadable message: 'x�': nonsense"]),
            (Health("fault: engine"), ["the line must not run: fault: engine"]),
            (Health(None), ["the line may run"]),
        ]
        for event, said in events:
            watch.tell(event)
            assert err.all() == [f"inspectd: {text}" for text in said]

    def test_silence_and_its_end(self) -> None:
        """Who was never heard is no news twice."""
        err = Lines()
        watch = _Watch("tcp://x:1", err)
        watch.nobody()
        assert err.next().startswith("inspectd: no heartbeat from tcp://x:1 for 1.5 s; does the daemon run")
        assert not watch.waiting
        watch.tell(Health(None))
        assert err.next().startswith("inspectd: heartbeat from tcp://x:1, after ")
        watch.tell(Health("silent"))
        assert err.next() == "inspectd: no heartbeat from tcp://x:1 for 0.9 s"
        watch.tell(Health("starting"))
        assert err.next().startswith("inspectd: heartbeat from tcp://x:1, after ")
        assert err.all() == ["inspectd: the line must not run: starting"]

    def test_a_daemon_that_was_never_there(self, line: FakeLine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Says what to check."""
        monkeypatch.setattr(tail_module, "NEVER_HEARD_S", 0.2)
        line.pause_heartbeats()
        tail = Tail(line, 1)
        assert "does the daemon run, is this its publish.bind" in tail.err.next()
        line.status()
        assert tail.code() == 0


class TestEnd:
    def test_a_wrong_endpoint_or_key_is_one_line_and_exit_code_2(self, tmp_path: Any) -> None:
        for wrong in ({"endpoint": "nonsense"}, {"control": "tcp://127.0.0.1:0"},
                      {"keys": Keys(tmp_path / "a", tmp_path / "b")}):  # fmt: skip
            with pytest.raises(UsageError) as caught:
                run_tail(**{"endpoint": unused_endpoint(), "count": 1, **wrong})
            assert "\n" not in str(caught.value)
            assert caught.value.exit_code == 2

    def spawn(self, line: FakeLine) -> subprocess.Popen[str]:
        # Started in the background of a shell, tests ignore SIGINT, and so would every child.
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"from inspectd.client.tail import run_tail; sys.exit(run_tail({line.verdicts!r}))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
        line.await_subscriber("verdict/")
        line.verdict()
        assert process.stdout is not None
        assert process.stdout.readline().split()[1] == TOPIC
        return process

    def test_ctrl_c_is_clean(self, line: FakeLine) -> None:
        with self.spawn(line) as process:
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=20)
        assert process.returncode == 0
        assert complaints == ""

    def test_a_closed_pipe_is_clean(self, line: FakeLine) -> None:
        """As with `inspectd tail | head -1`."""
        with self.spawn(line) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            line.verdict()
            line.verdict()
            complaints = process.stderr.read()
            assert process.wait(20) == 0
        assert complaints == ""
