"""The log as journald gets it: a real process, and a real socket in journald's place."""

import json
import os
import select
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from inspectd.observe.journal_socket import MAX_VALUE, JournalSocket, field_name

SAY = """
import sys
from pathlib import Path
import structlog
from inspectd.observe.logs import configure_logging
configure_logging("auto", "debug", journal=Path(sys.argv[1]))
log = structlog.get_logger("inspectd.test")
"""


def parse(datagram):
    """{field: value} of one datagram, by the protocol's own rules."""
    fields = {}
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        name, plain, value = head.partition(b"=")
        if not plain:
            length = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + length], datagram[8 + length + 1 :]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


@contextmanager
def journal(folder):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(folder / "journal"))
        server.settimeout(10)
        yield server


def say(code, path):
    """Run the code in a process whose stderr is systemd's: what came on that stream."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status = os.fstat(theirs.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        with subprocess.Popen([sys.executable, "-c", SAY + code, path], stderr=theirs, env=environ) as process:
            theirs.close()
            with ours.makefile() as reader:
                said = reader.read()
    assert process.returncode == 0, said
    return said


def received(server):
    lines = []
    while select.select([server], [], [], 0)[0]:
        lines.append(parse(server.recv(1 << 20)))
    return lines


def test_a_line_reaches_journald_with_its_keys_as_fields_and_the_json_as_message(tmp_path):
    """Filters of journalctl find it by camera and reason, and `-o cat` shows what it always did."""
    with journal(tmp_path) as server:
        stream = say(
            "log.warning('camera_fault', camera='top', reason='stall', after_s=3.5, n=[1])", tmp_path / "journal"
        )
        (line,) = received(server)
    assert stream == ""
    assert (line["PRIORITY"], line["SYSLOG_IDENTIFIER"]) == ("4", "inspectd")
    assert (line["INSPECTD_EVENT"], line["INSPECTD_CAMERA"]) == ("camera_fault", "top")
    assert (line["INSPECTD_REASON"], line["INSPECTD_AFTER_S"], line["INSPECTD_N"]) == ("stall", "3.5", "[1]")
    message = json.loads(line["MESSAGE"])
    assert (message["event"], message["camera"], message["after_s"]) == ("camera_fault", "top", 3.5)


def test_a_traceback_arrives_whole_and_the_line_after_it_too(tmp_path):
    with journal(tmp_path) as server:
        code = "try: 1 / 0\nexcept ZeroDivisionError: log.exception('broken')\nlog.info('next')"
        say(code, tmp_path / "journal")
        broken, following = received(server)
    assert broken["PRIORITY"] == "3"
    assert broken["INSPECTD_EXCEPTION"].count("\n") >= 2
    assert "ZeroDivisionError" in broken["INSPECTD_EXCEPTION"]
    assert following["INSPECTD_EVENT"] == "next"


def test_no_credential_gets_into_a_field(tmp_path):
    with journal(tmp_path) as server:
        say("log.info('opening', url='rtsp://admin:hunter2@10.0.0.9/live')", tmp_path / "journal")
        (line,) = received(server)
    assert "hunter2" not in str(line)
    assert line["INSPECTD_URL"] == "rtsp://***@10.0.0.9/live"


def test_what_is_too_long_for_a_datagram_goes_to_the_stream_with_its_priority(tmp_path):
    with journal(tmp_path) as server:
        stream = say("log.error('long', text='x' * 10_000_000)\nlog.info('short')", tmp_path / "journal")
        (short,) = received(server)
    assert stream.startswith("<3>")
    assert len(json.loads(stream[3:])["text"]) == 10_000_000
    assert short["INSPECTD_EVENT"] == "short"


def test_without_journalds_socket_the_stream_gets_the_lines(tmp_path):
    stream = say("log.info('alone')", tmp_path / "absent")
    assert json.loads(stream.removeprefix("<6>"))["event"] == "alone"


def test_a_journal_that_does_not_keep_up_never_holds_a_line_up_and_is_told_how_many_it_lost(tmp_path):
    """Nobody reads: the queue of the socket fills, lines are dropped. With room again the count comes first."""
    code = """
for n in range(5000):
    log.info('flood', n=n)
print('flooded', flush=True)
sys.stdin.readline()
log.info('after')
"""
    with journal(tmp_path) as server:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            status = os.fstat(theirs.fileno())
            environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
            with subprocess.Popen(
                [sys.executable, "-c", SAY + code, tmp_path / "journal"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=theirs,
                env=environ,
                text=True,
            ) as process:
                assert process.stdout.readline() == "flooded\n"
                before = received(server)
                process.communicate("\n", timeout=60)
        lost, after = received(server)
    assert {line["INSPECTD_EVENT"] for line in before} == {"flood"}
    assert 0 < len(before) < 5000
    assert lost["INSPECTD_EVENT"] == "log_lines_lost"
    assert int(lost["INSPECTD_N"]) == 5000 - len(before)
    assert after["INSPECTD_EVENT"] == "after"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("camera", "INSPECTD_CAMERA"),
        ("a-b.c", "INSPECTD_A_B_C"),
        ("ü", "INSPECTD__"),
        ("k" * 90, "INSPECTD_" + "K" * 55),
    ],
)
def test_a_key_becomes_a_name_that_journald_takes(key, name):
    assert field_name(key) == name


def test_a_field_is_cut_and_no_key_takes_the_place_of_another(tmp_path):
    """Two keys that become one name: the first stays, and MESSAGE has both."""
    with journal(tmp_path) as server:
        sender = JournalSocket(tmp_path / "journal")
        sender.send("all of it", 6, {"a-b": "é" * MAX_VALUE, "a.b": "second"})
        sender.close()
        (line,) = received(server)
    assert line["INSPECTD_A_B"] == "é" * (MAX_VALUE // 2)
    assert line["MESSAGE"] == "all of it"
