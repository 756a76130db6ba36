"""What comes out of the whole daemon beside verdicts of single frames: parts, journal, evidence."""

import json
import math
import sqlite3
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest
import zmq
from colour_bundle import COLOURS, VERDICTS, colour_bundle
from faulty_camera import FaultyCamera, kind_at
from line import Line, TriggerClient, running_daemon

from inspectd.verdict.decide import Decider
from inspectd.verdict.schema import encode

CONFIG = """
[model]
bundle = "bundle"
[publish]
bind = "tcp://127.0.0.1:*"
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
{extra}
[[cameras]]
name = "line1"
source = "usb:0"
{camera}
[[cameras.rois]]
name = "part"
box = [0, 0, 80, 80]
{roi}
"""


@pytest.fixture
def write(tmp_path):
    """Writes the configuration, with what a test adds."""
    colour_bundle(tmp_path / "bundle")

    def _write(extra="", camera="", roi=""):
        path = tmp_path / "line.toml"
        path.write_text(CONFIG.format(extra=extra, camera=camera, roi=roi))
        return path

    return _write


PERIOD_S = 0.6


def conveyor(moment):
    """Every 0.6 s a part is in view for 0.3 s; every third one is scratched in its middle."""
    number, phase = divmod(moment, PERIOD_S)
    if phase > PERIOD_S / 2:
        return "empty"
    return "scratch" if number % 3 == 0 and 0.05 < phase < 0.25 else "good"


def test_each_part_in_view_gets_one_verdict(write, monkeypatch):
    """Counted by the frames' own times: one message per part, and the verdict of its worst frame."""
    # A camera that pauses for 0.2 s, because the machine is busy, still may be believed.
    roi = 'part = { vote = "any_defect", leave_frames = 12 }'
    config = write(camera="max_age_ms = 10000\nqueue_size = 200", roi=roi)
    with running_daemon(monkeypatch, config, FaultyCamera(fps=60, scene=conveyor)) as daemon, Line(daemon) as line:
        line.until(lambda topic, m: topic == "part/line1/part/" and m["seq"] >= 6)
    parts = [m for topic, m in line.messages if topic == "part/line1/part/"]
    verdicts = {m["seq"]: m for topic, m in line.messages if topic == "verdict/line1/part/"}
    assert [m["seq"] for m in parts] == list(range(1, len(parts) + 1))
    watched = parts[1:]  # the first one may have been in view before the camera was: nobody saw all of it
    numbers = [math.floor(part["decisive"]["pts"] / PERIOD_S) for part in watched]
    assert all(later - earlier == 1 for earlier, later in pairwise(numbers))
    for number, part in zip(numbers, watched, strict=True):
        expected = "scratch" if number % 3 == 0 else "good"
        assert (part["label"], part["verdict"]) == (expected, VERDICTS[expected])
        assert part["frames"]["total"] == sum(n for key, n in part["frames"].items() if key != "total")
        assert part["decisive"]["seq"] in verdicts
        assert verdicts[part["decisive"]["seq"]]["label"] == expected


def test_a_camera_that_is_quiet_for_a_moment_hides_no_part(write, monkeypatch):
    """What was seen before and after is not one part: a scratched one may have passed in between."""
    quiet, reasons = [], []
    start = time.monotonic() // PERIOD_S

    def scene(moment):
        number, phase = divmod(moment, PERIOD_S)
        if not quiet and number > start + 4 and 0.1 < phase < 0.2:
            quiet.append(number)
            time.sleep(2 * PERIOD_S)  # into the middle of the next part but one
        return "good" if phase < PERIOD_S / 2 else "empty"

    def well_again(topic, message):
        if topic.startswith("part/"):
            reasons.append(message["reason"])
        return bool(quiet) and reasons[-1:] == [None] and "camera_down" in reasons

    config = write(camera="max_age_ms = 10000\nqueue_size = 200", roi="part = { leave_frames = 12 }")
    with running_daemon(monkeypatch, config, FaultyCamera(fps=60, scene=scene)) as daemon, Line(daemon) as line:
        line.until(well_again)
        assert {message["state"] for topic, message in line.messages if topic.startswith("status/")} <= {
            "starting",
            "ready",
        }


def test_before_publish_nothing_is_sent_that_is_not_on_disk(write, monkeypatch, tmp_path):
    """Whatever a subscriber has received it finds in the journal file, at that very moment."""
    config = write('[journal]\npath = "journal.db"\nsync = "before_publish"', 'trigger = "command"')
    with running_daemon(monkeypatch, config, FaultyCamera(fps=100)) as daemon, Line(daemon) as line:
        line.state("ready")
        journal = sqlite3.connect(tmp_path / "journal.db")
        seen = 0
        for number in range(20):
            assert line.ask("trigger", camera="line1", part_id=str(number), deadline_ms=2000)["ok"]
            verdict = line.verdict()
            rows = journal.execute(
                "SELECT body FROM rows WHERE topic = ? AND seq = ?", ("verdict/line1/part/", seen + 1)
            )
            (row,) = rows.fetchall()
            assert json.loads(row[0]) == verdict
            seen = verdict["seq"]
        journal.close()
        assert seen == 20


def test_what_a_slow_disk_holds_up_beyond_the_deadline_is_not_published_as_pass(write, monkeypatch, tmp_path):
    """The journal keeps both rows; the one that counts says what was published."""
    config = write('[journal]\npath = "journal.db"\nsync = "before_publish"', 'trigger = "command"')
    camera = FaultyCamera(fps=100, scene=lambda moment: "good")
    with running_daemon(monkeypatch, config, camera) as daemon, Line(daemon) as line:
        line.state("ready")
        disk = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        disk.execute("BEGIN IMMEDIATE")  # a writer that does not let go
        reply = line.ask("trigger", camera="line1", deadline_ms=60)
        verdict = line.verdict()
        disk.execute("ROLLBACK")
        disk.close()
        assert verdict["trigger_id"] == reply["trigger_id"]
        assert (verdict["verdict"], verdict["reason"]) == ("no_result", "deadline")
        assert line.ask("replay", topic="verdict/line1/part/", from_seq=1)["messages"] == [verdict | {"replayed": True}]


def test_evidence_is_the_region_as_the_camera_saw_it(write, monkeypatch, tmp_path):
    """The verdict names a picture; it is there, in full resolution and in the right colour."""
    config = write('[evidence]\ndir = "evidence"\nof = ["fail"]', 'trigger = "command"')
    with running_daemon(monkeypatch, config, FaultyCamera(fps=50)) as daemon, Line(daemon) as line:
        line.state("ready")
        while True:
            line.ask("trigger", camera="line1", deadline_ms=1000)
            verdict = line.verdict()
            if verdict["verdict"] == "fail":
                break
            assert verdict["evidence"] is None
    picture = cv2.imread(str(tmp_path / "evidence" / verdict["evidence"]))
    assert picture.shape == (80, 80, 3)
    colour = np.array(COLOURS[kind_at(verdict["frame"]["pts"])])
    assert np.abs(picture[1::8, :, ::-1].reshape(-1, 3).mean(0) - colour).max() < 2


def test_a_camera_that_is_away_answers_at_once(write, monkeypatch):
    """And not at the deadline: the line learns as early as can be that there is no result."""
    config = write(camera='trigger = "command"\nstall_timeout_s = 0.2')
    camera = FaultyCamera(fps=50)
    with running_daemon(monkeypatch, config, camera) as daemon, Line(daemon) as line:
        line.state("ready")
        camera.faults = {"stall": 1.0}
        camera.injected["stall"] = 0
        line.until(lambda topic, m: topic == "status/line1/" and m["state"] == "fault")
        reply = line.ask("trigger", camera="line1", deadline_ms=60_000, part_id="ä" * 100)
        verdict = line.verdict()
        assert (verdict["reason"], verdict["frame"], verdict["part_id"]) == ("camera_down", None, "ä" * 100)
        assert verdict["trigger_id"] == reply["trigger_id"]


def test_a_late_result_is_counted_and_journaled_and_never_published(write, monkeypatch, tmp_path):
    """The engine takes longer than the deadline: one no_result, and a row `late` with what it would have been."""
    decide = Decider.decide

    def slow(self, *what):
        time.sleep(0.2)
        return decide(self, *what)

    config = write('[journal]\npath = "journal.db"', 'trigger = "command"')
    camera = FaultyCamera(fps=50, scene=lambda moment: "good")
    with running_daemon(monkeypatch, config, camera) as daemon, Line(daemon) as line:
        line.state("ready")
        monkeypatch.setattr(Decider, "decide", slow)
        reply = line.ask("trigger", camera="line1", part_id="7", deadline_ms=100)
        verdict = line.verdict()
        assert (verdict["verdict"], verdict["reason"], verdict["part_id"]) == ("no_result", "deadline", "7")
        assert verdict["published_at"] <= reply["deadline_at"]
        monkeypatch.setattr(Decider, "decide", decide)
        assert line.ask("trigger", camera="line1", part_id="8", deadline_ms=2000)["ok"]
        assert line.verdict()["part_id"] == "8"
        assert daemon.metrics.registry.get_sample_value("inspectd_late_results_total", {"camera": "line1"}) == 1
        assert daemon.ledger.snapshot()[0].dropped["late"] == 1
    with sqlite3.connect(tmp_path / "journal.db") as journal:
        ((body,),) = journal.execute("SELECT body FROM rows WHERE kind = 'late'").fetchall()
    late = json.loads(body)
    assert (late["verdict"], late["trigger_id"]) == ("pass", reply["trigger_id"])


def test_a_deadline_that_passes_while_the_message_is_written_is_no_judgement(write, monkeypatch, tmp_path):
    """A thread may lose its processor between any two steps: the time is asked for when nothing is left but to send."""

    def slow(message, encoding):
        body = encode(message, encoding)
        if getattr(message, "verdict", None) == "pass":
            time.sleep(0.15)
        return body

    config = write('[journal]\npath = "journal.db"', 'trigger = "command"')
    camera = FaultyCamera(fps=50, scene=lambda moment: "good")
    with running_daemon(monkeypatch, config, camera) as daemon, Line(daemon) as line:
        line.state("ready")
        monkeypatch.setattr("inspectd.verdict.stream.encode", slow)
        reply = line.ask("trigger", camera="line1", deadline_ms=100)
        verdict = line.verdict()
        assert (verdict["trigger_id"], verdict["seq"]) == (reply["trigger_id"], 1)
        assert (verdict["verdict"], verdict["reason"]) == ("no_result", "deadline")
        assert line.ask("trigger", camera="line1", deadline_ms=2000)["ok"]
        assert line.verdict()["verdict"] == "pass"
        assert daemon.metrics.registry.get_sample_value("inspectd_late_results_total", {"camera": "line1"}) == 1
        assert all(account.balanced for account in daemon.ledger.snapshot())
    with sqlite3.connect(tmp_path / "journal.db") as journal:
        ((first,),) = journal.execute(
            "SELECT body FROM rows WHERE kind = 'message' AND topic LIKE 'verdict/%' AND seq = 1"
        )
    assert json.loads(first) == verdict


def test_open_triggers_are_answered_at_the_end(write, monkeypatch):
    """A stop leaves nobody waiting for a deadline."""
    config = write(camera='trigger = "command"\ntrigger_delay_ms = 50000')
    with running_daemon(monkeypatch, config, FaultyCamera(fps=50)) as daemon, Line(daemon) as line:
        line.state("ready")
        client = TriggerClient(daemon, ["part"])
        for _ in range(4):
            client.trigger(55_000)
        while len(client.accepted) < 4:
            client.turn(0.1)
        daemon.stop()
        while client.open:
            client.turn(0.1)
        assert {answers[0]["reason"] for answers in client.answers.values()} == {"not_ready"}
        client.close()


def test_a_full_camera_is_busy(write, monkeypatch):
    """status/ says so, and that it is over."""
    config = write(camera='trigger = "command"\ntrigger_delay_ms = 300\nqueue_size = 1')
    with running_daemon(monkeypatch, config, FaultyCamera(fps=50)) as daemon, Line(daemon) as line:
        line.state("ready")
        assert line.ask("trigger", camera="line1", deadline_ms=5000)["ok"]
        assert line.ask("trigger", camera="line1", deadline_ms=5000)["error"]["code"] == "busy"
        line.verdict()
        line.until(lambda topic, m: topic == "status/line1/" and m["seq"] >= 4)
        assert [m["state"] for t, m in line.messages if t == "status/line1/"][-2:] == ["busy", "ready"]


def test_the_stream_goes_on_in_msgpack_with_a_journal(write, monkeypatch):
    """The journal keeps bodies as on the wire; a replay is JSON in any case."""
    config = write('[journal]\npath = "journal.db"').read_text().replace("[publish]", '[publish]\nencoding = "msgpack"')
    path = write()
    path.write_text(config)
    with running_daemon(monkeypatch, path, FaultyCamera(fps=50)) as daemon:
        context = zmq.Context()
        control = context.socket(zmq.REQ)
        control.set(zmq.LINGER, 0)
        control.connect(daemon.publisher.control_endpoint)
        until = time.monotonic() + 15
        while time.monotonic() < until:
            control.send(json.dumps({"op": "replay", "topic": "verdict/line1/part/", "from_seq": 1}).encode())
            assert control.poll(5000)
            reply = json.loads(control.recv())
            if len(reply["messages"]) > 5:
                break
        assert reply["messages"][5]["schema"] == "inspectd.verdict/1"
        control.close()
        context.term()
