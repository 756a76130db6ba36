"""The log as it reaches a stream: format, order, redaction, counting."""

import io
import json
import logging
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import warnings
from functools import partial

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from inspectd.observe.logs import Counted, configure_logging, redacted
from inspectd.source_spec import redact

SECRET_URL = "rtsp://admin:hunter2@10.0.0.9:554/live"
SECRET_EVENT = f"opening {SECRET_URL} now"


@pytest.fixture(autouse=True)
def _restore():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def json_log(stream):
    configure_logging("json", "info", stream, {})
    return structlog.get_logger("inspectd.test")


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Terminal(io.StringIO):
    def isatty(self):
        return True


# -- format ---------------------------------------------------------------------------------------------


def test_a_json_line_has_time_level_event_and_logger_first(json_log, stream):
    """One object per line, RFC 3339 UTC with microseconds, the values as JSON has them."""
    json_log.info("camera_lost", camera="cam1", reason="stall", after_s=3.25, rois=("a", "b"), ok=False)
    (line,) = lines(stream)
    assert list(line)[:4] == ["timestamp", "level", "event", "logger"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "camera_lost",
        "logger": "inspectd.test",
        "camera": "cam1",
        "reason": "stall",
        "after_s": 3.25,
        "rois": ["a", "b"],
        "ok": False,
    }


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_is_honoured_by_our_logs_and_by_libraries(stream, level):
    """One setting for both."""
    configure_logging("json", level, stream, {})
    names = ["debug", "info", "warning", "error"]
    for name in names:
        getattr(structlog.get_logger("ours"), name)("said")
        getattr(logging.getLogger("theirs"), name)("said")
    expected = names[names.index(level) :]
    assert [(line["logger"], line["level"]) for line in lines(stream)] == [
        (who, name) for name in expected for who in ("ours", "theirs")
    ]


def test_libraries_that_use_logging_end_in_the_same_lines(json_log, stream):
    """Same keys, arguments filled in, `extra` kept; warnings of Python too."""
    logging.getLogger("zmq").warning("bind to %s failed", "x", extra={"port": 5556})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    first, second = lines(stream)
    assert (first["event"], first["logger"], first["level"], first["port"]) == (
        "bind to x failed",
        "zmq",
        "warning",
        5556,
    )
    assert "old thing" in second["event"]


def test_numbers_that_json_has_not_and_numpys_own_are_readable(json_log, stream):
    """Every line parses strictly, whatever was logged."""
    json_log.info(
        "odd", nan=float("nan"), inf=-np.inf, i=np.int64(7), f=np.float32(0.5), b=b"\xff", path=pathlib.Path("/x")
    )
    (line,) = [json.loads(text, parse_constant=pytest.fail) for text in stream.getvalue().splitlines()]
    assert (line["nan"], line["inf"], line["i"], line["f"], line["path"]) == ("nan", "-inf", 7, 0.5, "/x")
    assert line["b"] == "b'\\xff'"


def test_a_value_that_cannot_be_shown_does_not_cost_the_line(stream):
    """Its repr raises; it is nested in itself."""
    configure_logging("json", "info", stream, {})  # here, so that no handler of pytest is asked too

    class Hostile:
        def __repr__(self):
            raise RuntimeError("no")

    circle = []
    circle.append(circle)
    structlog.get_logger("x").info("odd", hostile=Hostile(), circle=circle)
    (line,) = lines(stream)
    assert line["event"] == "odd"
    assert line["hostile"] == "<unprintable Hostile: RuntimeError>"


def test_a_line_that_cannot_be_written_shows_nothing_of_its_content(stream, capfd):
    """logging's own handler would print the raw message to stderr, with its arguments."""

    class Narrow(io.StringIO):
        def write(self, text):
            text.encode("ascii")
            return super().write(text)

    narrow = Narrow()
    configure_logging("json", "info", narrow, {})
    structlog.get_logger("x").info("odd", url=SECRET_URL, sign="°")
    assert narrow.getvalue() == "a log line of x was lost: UnicodeEncodeError\n"
    out = capfd.readouterr()
    assert "hunter2" not in out.err + out.out


def test_auto_is_pretty_on_a_terminal_and_json_elsewhere(stream):
    """And `pretty` or `json` are what they say anywhere."""
    shown = {}
    for name, format_, where in [
        ("terminal", "auto", Terminal()),
        ("pipe", "auto", io.StringIO()),
        ("forced json", "json", Terminal()),
        ("forced pretty", "pretty", io.StringIO()),
    ]:
        configure_logging(format_, "info", where, {})
        structlog.get_logger("x").info("hello", camera="cam1")
        shown[name] = where.getvalue()
    assert json.loads(shown["pipe"])["event"] == json.loads(shown["forced json"])["event"] == "hello"
    assert "\x1b[" in shown["terminal"]
    assert "\x1b[" not in shown["forced pretty"]
    assert "hello" in shown["forced pretty"]
    assert "camera=cam1" in shown["forced pretty"]


def test_no_color_is_honoured():
    """https://no-color.org"""
    terminal = Terminal()
    configure_logging("auto", "info", terminal, {"NO_COLOR": "1"})
    structlog.get_logger("x").info("hello")
    assert "\x1b[" not in terminal.getvalue()


def test_configuring_again_takes_effect_for_loggers_in_use(stream):
    """A logger from before writes to the new stream, and once."""
    log = structlog.get_logger("x")
    configure_logging("json", "error", io.StringIO(), {})
    log.info("nothing")
    configure_logging("json", "info", stream, {})
    log.info("something")
    assert [line["event"] for line in lines(stream)] == ["something"]


# -- journald -------------------------------------------------------------------------------------------


def test_under_systemd_every_line_carries_its_priority(tmp_path):
    """`<N>` in front, only when $JOURNAL_STREAM names this very stream: a real process, a real socket."""
    code = (
        "import pathlib, structlog, sys\n"
        "from inspectd.observe.logs import configure_logging\n"
        "configure_logging(sys.argv[1], 'debug', journal=pathlib.Path('/nowhere'))\n"
        "log = structlog.get_logger('x')\n"
        "log.debug('d'); log.info('i'); log.warning('w'); log.error('e'); log.critical('c')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: log.exception('x')\n"
    )

    def run(format_, stream_is_journal):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            status = os.fstat((theirs if stream_is_journal else ours).fileno())
            environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
            subprocess.run([sys.executable, "-c", code, format_], stderr=theirs, env=environ, check=True, timeout=60)
            theirs.close()
            with ours.makefile() as reader:
                return reader.read().splitlines()

    journal = run("auto", stream_is_journal=True)
    assert [line[:3] for line in journal] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    assert "ZeroDivisionError" in json.loads(journal[-1][3:])["exception"]
    assert all(line.startswith("<3>") for line in run("pretty", stream_is_journal=True)[5:])
    assert [json.loads(line)["event"] for line in run("auto", stream_is_journal=False)] == list("diwecx")


# -- redaction ------------------------------------------------------------------------------------------


class Holder:
    def __repr__(self):
        return f"Holder({SECRET_URL})"


@pytest.mark.parametrize("format_", ["json", "pretty"])
@pytest.mark.parametrize(
    "say",
    [
        lambda log: log.info(SECRET_EVENT),
        lambda log: log.info("x", url=SECRET_URL),
        lambda log: log.info("x", nested={"deep": [{"er": (SECRET_URL,)}]}),
        lambda log: log.info("x", **{SECRET_URL: 1}),
        lambda log: log.info("x", nested={SECRET_URL: 1}),
        lambda log: log.info("x", raw=SECRET_URL.encode()),
        lambda log: log.info("x", error=OSError(SECRET_URL)),
        lambda log: log.info("x", thing=Holder()),
        lambda log: log.info("x", things={Holder()}),
        lambda log: log.bind(camera=SECRET_URL).info("x"),
        lambda log: logging.getLogger("av").warning("cannot open %s", SECRET_URL),
        lambda log: logging.getLogger("av").warning("x", extra={"url": SECRET_URL}),
        lambda log: raise_and(log.exception),
        lambda log: raise_and(logging.getLogger("av").exception),
        lambda log: raise_and(partial(log.exception, stack_info=True)),
    ],
)
def test_no_password_reaches_the_log_by_any_way(stream, format_, say):
    """Event, values, keys, nested, bytes, objects, bound context, libraries, tracebacks and their causes."""
    configure_logging(format_, "info", stream, {})
    say(structlog.get_logger("inspectd.test"))
    assert "hunter2" not in stream.getvalue()
    assert "***@10.0.0.9:554/live" in stream.getvalue()


def fail():
    raise OSError(f"cannot open {SECRET_URL}")


def raise_and(report):
    try:
        try:
            fail()
        except OSError as err:
            raise RuntimeError(f"camera failed at {SECRET_URL}") from err
    except RuntimeError:
        report("failed")


@given(
    password=st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=12),
    shape=st.recursive(st.just("X"), lambda inner: st.lists(inner, min_size=1, max_size=2), max_leaves=4),
)
def test_no_password_whatever_its_characters_survives(password, shape):
    """An unescaped @ or / in it is what people type into cameras."""
    marked = f"<{password}>"

    def filled(value):
        return f"open rtsp://admin:{marked}@cam.local/1: refused" if value == "X" else [filled(item) for item in value]

    assert marked not in json.dumps(redacted(filled(shape)), ensure_ascii=False)
    assert "cam.local/1: refused" in json.dumps(redacted(filled(shape)))


@pytest.mark.parametrize("password", ["p@ss", "p/a@ss", "@", "a@b@c", "://@"])
def test_no_part_of_a_password_with_reserved_characters_is_left(password):
    """Cut at the last @ that can belong to it, not at the first."""
    assert redact(f"rtsp://admin:{password}@cam/1") == "rtsp://***@cam/1"


# -- counting -------------------------------------------------------------------------------------------


def test_trouble_with_every_frame_is_one_line_a_second(json_log, stream):
    """A thousand times in a second is one line with n=1000, per event and labels."""
    start = time.monotonic()
    counted = Counted(json_log)
    for _ in range(1000):
        counted.count("frame_refused", camera="cam1", reason="corrupt")
    counted.count("frame_refused", camera="cam2", reason="stale")
    counted.flush(start + 0.5)
    assert lines(stream) == []
    counted.flush(start + 1.5)
    written = [(line["event"], line["camera"], line["reason"], line["n"], line["level"]) for line in lines(stream)]
    assert written == [
        ("frame_refused", "cam1", "corrupt", 1000, "warning"),
        ("frame_refused", "cam2", "stale", 1, "warning"),
    ]
    assert 1.0 < lines(stream)[0]["over_s"] <= 1.5


def test_nothing_is_said_when_nothing_happened(json_log, stream):
    """A quiet second stays quiet, and what was said is not said again."""
    start = time.monotonic()
    counted = Counted(json_log)
    counted.count("queue_full")
    for second in range(1, 6):
        counted.flush(start + second * 1.1)
    assert len(lines(stream)) == 1


def test_what_is_left_at_the_end_is_said(json_log, stream):
    """Trouble in the last half second is not lost."""
    counted = Counted(json_log)
    counted.count("queue_full")
    counted.close()
    assert [line["n"] for line in lines(stream)] == [1]


def test_a_label_that_grows_cannot_fill_the_memory(json_log, stream):
    """A mistake of ours is bounded, and still counted whole."""
    counted = Counted(json_log)
    for index in range(10 * Counted.MAX_KINDS):
        counted.count("oops", frame=str(index))
    counted.close()
    assert len(lines(stream)) == Counted.MAX_KINDS + 1
    assert sum(line["n"] for line in lines(stream)) == 10 * Counted.MAX_KINDS


# -- cost -----------------------------------------------------------------------------------------------


def test_logging_imports_nothing_heavy():
    """`inspectd run` starts fast: no av, numpy or cv2 because of the log."""
    code = (
        "import sys, inspectd.observe.logs; print([m for m in ('av', 'cv2', 'torch', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_ffmpeg_writes_nothing_to_stderr_once_it_is_quiet(tmp_path):
    """Its messages may hold URLs, and a damaged stream makes hundreds a second."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    code = (
        "import av, av.logging, sys\n"
        "from inspectd.observe.logs import quiet_ffmpeg\n"
        "av.logging.restore_default_callback()\n"
        "if sys.argv[2] == 'quiet': quiet_ffmpeg()\n"
        "try: av.open(sys.argv[1])\n"
        "except av.FFmpegError: print('refused')\n"
    )

    def stderr(mode):
        done = subprocess.run(
            [sys.executable, "-c", code, str(broken), mode], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.strip() == "refused"
        return done.stderr

    assert stderr("loud") != ""
    assert stderr("quiet") == ""
