"""The wall clock is stepped under the running daemon: nothing that it decides goes by that clock."""

import itertools
import json
import os
import shutil
import struct
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
import zmq
from colour_bundle import VERDICTS, colour_bundle
from faulty_camera import kind_at
from journal_kit import eventually, query
from own_clock import FPS
from plant import Plant, wrong
from row import fault
from test_daemon import counters, unbalanced

from inspectd.verdict.journal.verify import verify

CONFIG = """
[model]
bundle = "bundle"
[publish]
bind = "tcp://127.0.0.1:*"
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[journal]
path = "journal.db"
[evidence]
dir = "evidence"
of = ["fail"]
max_per_s = 100
[log]
format = "json"
[[cameras]]
name = "line"
source = "usb:0"
max_age_ms = 1000
[[cameras.rois]]
name = "part"
box = [0, 0, 80, 80]
[[cameras]]
name = "asked"
source = "usb:1"
max_age_ms = 1000
trigger = "command"
trigger_delay_ms = 400
[[cameras.rois]]
name = "part"
box = [0, 0, 80, 80]
"""
DELAY_S = 0.4  # trigger_delay_ms
DEADLINE_S = 5.0
HERE = Path(__file__).parent
HOUR = 3600


class Stepped(Plant):
    """The daemon under a wall clock that `step` sets wrong, with evidence, journal, and a camera that is triggered."""

    def __init__(self, folder):
        if not shutil.which("gcc"):
            pytest.skip("a clock that can be stepped needs gcc")
        library = folder / "stepped_clock.so"
        source = HERE / "stepped_clock.c"
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        colour_bundle(folder / "bundle")
        (folder / "line.toml").write_text(CONFIG)
        self.folder = folder
        self.clock = folder / "clock"
        self.clock.write_bytes(struct.pack("d", 0.0))
        super().__init__(
            folder / "line.toml",
            lambda message: kind_at(message["frame"]["pts"]),
            os.environ | {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self.clock)},
            program=[HERE / "own_clock.py"],
        )

    def __enter__(self):
        super().__enter__()
        self.control = zmq.Context.instance().socket(zmq.REQ)
        self.control.linger = 0
        self.control.connect(self.daemon.wait_for_log("started")["control"])
        self.judgement()
        self.state("ready")
        return self

    def __exit__(self, *exc):
        self.control.close()
        super().__exit__(*exc)

    def step(self, by_s):
        """Set the daemon's wall clock wrong by so much, at once."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("d", by_s))

    def trigger(self):
        """Trigger the camera `asked`; the reply, with `sent`, the monotonic time before it."""
        request = {"op": "trigger", "camera": "asked", "deadline_ms": DEADLINE_S * 1000}
        sent = time.monotonic()
        self.control.send(json.dumps(request).encode())
        assert self.control.poll(10_000)
        reply = json.loads(self.control.recv())
        assert reply["ok"], reply
        return {**reply, "sent": sent}

    def answer(self, trigger):
        """The verdict for it."""
        return self.subscriber.until(lambda m: m.get("trigger_id") == trigger["trigger_id"], DEADLINE_S + 5)

    def verdicts(self, since):
        """Fresh verdicts of the free camera, from that message on."""
        return [m for m in self.subscriber.messages[since:] if m["topic"] == "verdict/line/part/" and not m["replayed"]]


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """One daemon for all steps: each row begins with the right time. At its end journal and evidence are in order."""
    with Stepped(tmp_path_factory.mktemp("clocks")) as plant:
        yield plant
        assert plant.daemon.stop() == 0
    found = verify(plant.folder / "journal.db")
    assert not found.faults
    assert found.rows > 50


@pytest.fixture
def plant(stepped):
    stepped.step(0.0)
    stepped.judgement()
    yield stepped
    stepped.step(0.0)
    assert wrong(stepped.fresh, stepped.truth) == []
    assert unbalanced(stepped.daemon.scrape()) == []


def stands_the_step(plant, watch, by_s):
    """Judgements, latencies, drops, triggers, evidence and states are as if nothing had happened."""
    start = len(plant.subscriber.messages)
    open_trigger = plant.trigger()
    dropped = dropped_of(plant, "line")
    watch.injected()
    plant.step(by_s)
    stepped_at = time.time() + by_s
    stepping = time.monotonic()
    judgement = plant.subscriber.until(
        lambda m: m["topic"] == "verdict/line/part/" and not m["replayed"] and (m["frame"]["pts"] or 0) > stepping
    )
    watch.recovered()
    later = plant.trigger()
    answers = [plant.answer(open_trigger), plant.answer(later)]
    assert abs(unix(judgement["published_at"]) - stepped_at) < 10  # it is what people read, and it was stepped

    for asked, answer in zip((open_trigger, later), answers, strict=True):
        assert (answer["verdict"], answer["reason"]) == (VERDICTS[kind_at(answer["frame"]["pts"])], None)
        assert answer["frame"]["pts"] >= asked["sent"] + DELAY_S
        assert DELAY_S * 1000 <= answer["latency_ms"]["trigger"] < DEADLINE_S * 1000
    assert unix(later["deadline_at"]) - unix(later["accepted_at"]) == pytest.approx(DEADLINE_S, abs=0.001)

    verdicts = plant.verdicts(start)
    assert len(verdicts) > FPS / 4
    for before, after in itertools.pairwise(verdicts):
        assert after["seq"] == before["seq"] + 1
        assert after["frame"]["index"] == before["frame"]["index"] + 1
        assert after["received"] - before["received"] < 2.0  # no stall; the machine may be busy
    assert {m["reason"] for m in verdicts} <= {None, "overload"}
    assert all(0 <= value < 2000 for m in verdicts for value in m["latency_ms"].values() if value is not None)
    assert dropped_of(plant, "line") == dropped
    assert {m["state"] for m in plant.subscriber.messages[start:] if m["topic"] == "heartbeat/"} <= {"ready"}
    assert {m["journal"] for m in plant.subscriber.messages[start:] if m["topic"] == "heartbeat/"} <= {"ok"}
    boot, seq = verdicts[-1]["boot_id"], verdicts[-1]["seq"]
    row = "SELECT 1 FROM rows WHERE boot_id = ? AND topic = 'verdict/line/part/' AND seq = ?"
    eventually(lambda: query(plant.folder / "journal.db", row, boot, seq))
    for message in verdicts:
        if message["verdict"] == "fail":
            assert message["evidence"], message
    shown = [plant.folder / "evidence" / m["evidence"] for m in verdicts if m["evidence"]]
    eventually(lambda: all(path.exists() for path in shown))


def unix(stamp):
    return datetime.fromisoformat(stamp).timestamp()


def dropped_of(plant, camera):
    text = plant.daemon.scrape()
    return {k: v for k, v in counters(text, "inspectd_frames_dropped_total").items() if f'camera="{camera}"' in k}


@fault(
    "Clocks",
    "Wall clock steps forward by an hour",
    injected="the time of day that the process is told, an hour later at once; the camera keeps its own",
    does="nothing: no stall, no drop, no negative latency, triggers keep their deadlines, journal and evidence go on; "
    "only the times that people read are the new ones",
    protection="every interval, age and deadline goes by the monotonic clock",
    recover_s=2.0,
)
def test_forward(plant, watch):
    stands_the_step(plant, watch, HOUR)


@fault(
    "Clocks",
    "Wall clock steps back by an hour",
    injected="the time of day that the process is told, an hour earlier at once; the camera keeps its own",
    does="nothing, as above; rows of the journal keep their order, by number",
    protection="every interval, age and deadline goes by the monotonic clock; a camera's own clock is believed only "
    "within max_age_ms of the arrival",
    recover_s=2.0,
)
def test_back(plant, watch):
    stands_the_step(plant, watch, -HOUR)


@fault(
    "Clocks",
    "Wall clock leaps by years",
    injected="the time of day that the process is told, from today to 1971, as where a clock's battery is empty",
    does="nothing, as above; pictures of evidence lie in the folder of the day that the clock tells",
    protection="every interval, age and deadline goes by the monotonic clock",
    recover_s=2.0,
)
def test_leap(plant, watch):
    stands_the_step(plant, watch, 365 * 24 * HOUR - time.time())
