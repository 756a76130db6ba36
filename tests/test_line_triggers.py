"""Triggers through the whole daemon: exactly one answer per region, from no older frame, by the deadline."""

import gc
import random
import time
from collections import Counter
from datetime import datetime, timedelta
from typing import ClassVar

import pytest
from colour_bundle import VERDICTS, colour_bundle
from faulty_camera import FaultyCamera, kind_at
from line import TriggerClient, running_daemon

ROIS = ("left", "right")
MILLISECOND = timedelta(milliseconds=1)
CONFIG = """
[model]
bundle = "bundle"
[publish]
bind = "tcp://127.0.0.1:*"
send_queue = 100000
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[journal]
path = "journal.db"
[[cameras]]
name = "line1"
source = "usb:0"
trigger = "command"
queue_size = {queue_size}
max_age_ms = 300
stall_timeout_s = 0.3
[[cameras.rois]]
name = "left"
box = [0, 0, 80, 80]
[[cameras.rois]]
name = "right"
box = [80, 0, 80, 80]
"""


@pytest.fixture
def config(tmp_path):
    colour_bundle(tmp_path / "bundle")
    path = tmp_path / "line.toml"
    path.write_text(CONFIG.format(queue_size=8))
    return path


def wait_ready(daemon):
    deadline = time.monotonic() + 10
    while daemon.station.cameras[0].state != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def storm(client, count, seed, open_most=9):
    """Trigger until `count` were accepted, now and then one too many, and wait for the answers. Seconds it took."""
    dice = random.Random(seed)
    gc.disable()  # a collection over all that the client keeps would hold the daemon's threads as well
    started = time.monotonic()
    while len(client.accepted) < count:
        while len(client.sent_at) + client.open < open_most and len(client.accepted) + len(client.sent_at) < count:
            client.trigger(dice.choice((20, 60, 120, 250)))
        client.turn(0.02)
        assert time.monotonic() - started < 60 + count / 50, (len(client.accepted), client.refused)
    took = time.monotonic() - started
    until = time.monotonic() + 2
    while time.monotonic() < until and (client.sent_at or client.open):
        client.turn(0.05)
    client.turn(0.3)  # and nothing comes twice
    gc.enable()
    return took


def check(client, daemon):
    """What the contract promises, answer by answer. Counts by (verdict, reason)."""
    counts = Counter()
    for trigger, (reply, sent_at) in client.accepted.items():
        for roi in ROIS:
            answers = client.answers.get((trigger, roi), [])
            assert len(answers) == 1, (trigger, roi, answers)
            (answer,) = answers
            counts[answer["verdict"], answer["reason"]] += 1
            if answer["reason"] not in ("deadline", "camera_down"):
                assert answer["frame"]["pts"] >= sent_at, "an older frame than the trigger"
            if answer["verdict"] != "no_result" or answer["reason"] is None:
                assert answer["published_at"] <= reply["deadline_at"], "a judgement after the deadline"
                kind = kind_at(answer["frame"]["pts"])
                assert (answer["label"], answer["verdict"]) == (kind, VERDICTS[kind])
    assert set(client.answers) == {(trigger, roi) for trigger in client.accepted for roi in ROIS}
    assert all(account.balanced for account in daemon.ledger.snapshot())
    return counts


def lateness(client):
    """Answers (all of them no_result) that were published after the deadline, and the worst by how many ms."""
    late = [
        (datetime.fromisoformat(answer["published_at"]) - datetime.fromisoformat(reply["deadline_at"])) / MILLISECOND
        for trigger, (reply, _) in client.accepted.items()
        for roi in ROIS
        for answer in client.answers[trigger, roi]
        if answer["published_at"] > reply["deadline_at"]
    ]
    return len(late), max(late, default=0)


class OftenFaulty(FaultyCamera):
    """Each of `every` (kind -> number) comes again after so many frames, however long or short the test takes."""

    every: ClassVar = {}
    seen = 0

    def fault(self):
        self.seen += 1
        for kind, number in self.every.items():
            if self.seen % number == 0:
                self.injected[kind] += 1
                return kind
        return None


def test_every_trigger_has_one_answer_whatever_the_camera_does(config, monkeypatch):
    """Faults of all kinds; every answer that judges is that of a frame after the trigger."""
    camera = OftenFaulty(fps=150, ended=0, corrupt=0, resized=0, old=0)
    with running_daemon(monkeypatch, config, camera) as daemon:
        wait_ready(daemon)
        client = TriggerClient(daemon, ROIS)
        camera.every = {"corrupt": 11, "resized": 17}
        storm(client, 500, seed=2)
        # After an old frame nothing is fresh for a while; while the camera is away triggers are answered at once.
        camera.every = {"ended": 30, "old": 20, **camera.every}
        storm(client, 800, seed=3)
        counts = check(client, daemon)
        client.close()
    assert counts["pass", None] > 50
    assert counts["fail", None] > 50
    assert counts["no_result", "corrupt"] > 0
    assert counts["no_result", "camera_down"] + counts["no_result", "deadline"] > 0
    assert client.refused.keys() <= {"busy"}


@pytest.mark.soak
def test_a_hundred_thousand_triggers(config, monkeypatch):
    """At the rate that this machine sustains, with faults; prints what came out."""
    camera = FaultyCamera(fps=200, seed=3, ended=0.0003, stall=0.0001, corrupt=0.01, resized=0.003, old=0.003)
    with running_daemon(monkeypatch, config, camera) as daemon:
        wait_ready(daemon)
        client = TriggerClient(daemon, ROIS)
        took = storm(client, 100_000, seed=4)
        counts = check(client, daemon)
        client.close()
    print(f"\n100,000 triggers, {len(ROIS)} regions, in {took:.0f} s ({100_000 / took:.0f}/s); {dict(counts)}")
    print(f"refused meanwhile: {dict(client.refused)}; faults: {camera.injected}; late answers: {lateness(client)}")
    assert len(client.accepted) == 100_000
