"""What the line-side contract promises, over many kills and a long silence: run by `make test-soak`."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime

import pytest
from colour_bundle import colour_bundle
from daemon_process import DaemonProcess, Subscriber

from inspectd.verdict.journal.verify import verify

CONFIG = """
[model]
bundle = "bundle"
[publish]
bind = "tcp://127.0.0.1:*"
send_queue = {send_queue}
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[log]
format = "json"
[journal]
path = "journal.db"
sync = "{sync}"
[[cameras]]
name = "line1"
source = "conveyor:?width=160&height=128&fps=250"
[[cameras.rois]]
name = "left"
box = [0, 0, 80, 80]
[[cameras.rois]]
name = "right"
box = [80, 0, 80, 80]
"""
KILLS = 200
COMMIT_S = 0.25
"""One commit's own time on a busy disk, on top of `commit_ms`."""


@pytest.fixture
def write(tmp_path):
    colour_bundle(tmp_path / "bundle")

    def _write(sync="group", send_queue=1000):
        path = tmp_path / "line.toml"
        path.write_text(CONFIG.format(sync=sync, send_queue=send_queue))
        return path

    return _write


def unix(stamp):
    return datetime.fromisoformat(stamp).timestamp()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sync", ["group", "before_publish"])
def test_kill_9_loses_no_more_than_is_stated(write, tmp_path, sync):
    """Two hundred kills under load; what a subscriber had and the journal lacks is younger than the bound."""
    config = write(sync)
    dice = random.Random(5)
    received = lost = 0
    oldest_ms = 0.0
    for _ in range(KILLS):
        with DaemonProcess(config) as daemon, Subscriber(daemon.started().endpoint, ("verdict/",)) as line:
            line.until(lambda m: True)
            line.for_seconds(dice.uniform(0.1, 0.9))
            daemon.process.send_signal(signal.SIGKILL)
            killed = time.time()
            daemon.process.wait()
            line.drain(0.1)
        with sqlite3.connect(tmp_path / "journal.db") as journal:
            boot = line.messages[-1]["boot_id"]
            rows = journal.execute("SELECT topic, seq FROM rows WHERE boot_id = ? AND seq IS NOT NULL", (boot,))
            kept = set(rows.fetchall())
        missing = [m for m in line.verdicts if not m["replayed"] and (m["topic"], m["seq"]) not in kept]
        received += len(line.verdicts)
        lost += len(missing)
        oldest_ms = max([oldest_ms, *((killed - unix(m["published_at"])) * 1000 for m in missing)])
    verified = verify(tmp_path / "journal.db")
    print(f"\n{sync}: {KILLS} kills, {received} verdicts received, {lost} not journaled, the oldest {oldest_ms:.0f} ms")
    print(f"before the kill; {verified}")
    assert not verified.faults
    assert oldest_ms <= (50 + 1000 * COMMIT_S if sync == "group" else 0)


LISTENER = """
import json, sys
from inspectd.client import Client, Lost, Received, Verdict
verdicts, control = sys.argv[1:]
with Client(verdicts, control, topics=("verdict/",)) as client:
    for event in client:
        if isinstance(event, Received) and isinstance(event.message, Verdict):
            print(json.dumps([event.topic, event.message.seq, event.recovered]), flush=True)
        elif isinstance(event, Lost):
            print(json.dumps(["lost", event.first, False]), flush=True)
"""
STOPPED_S = 60


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_subscriber_that_stood_still_for_a_minute_catches_up_and_costs_nobody(write):
    """Its queue is long full; afterwards it has every verdict once, and the other one had no worse latency."""
    with DaemonProcess(write(send_queue=1000)) as daemon:
        daemon.started()
        control = daemon.wait_for_log("started")["control"]
        listener = subprocess.Popen(
            [sys.executable, "-c", LISTENER, daemon.endpoint, control], stdout=subprocess.PIPE, text=True
        )
        with Subscriber(daemon.endpoint, ("verdict/",)) as other:
            first = json.loads(listener.stdout.readline())
            before = latencies(other, 10)
            listener.send_signal(signal.SIGSTOP)
            during = latencies(other, STOPPED_S)
            listener.send_signal(signal.SIGCONT)
            newest = {m["topic"]: m["seq"] for m in other.verdicts}
            events, reached = [first], dict.fromkeys(newest, 0)
            while any(reached[topic] < seq for topic, seq in newest.items()):
                events.append(json.loads(listener.stdout.readline()))
                reached[events[-1][0]] = events[-1][1]
        listener.kill()
        listener.wait()
    recovered = sum(event[2] is True for event in events)
    print(f"\n{len(events)} events, {recovered} by replay; p99 of the other {before:.1f} ms, then {during:.1f}")
    assert not [event for event in events if event[0] == "lost"]
    assert recovered > 0
    for topic in newest:
        seqs = [event[1] for event in events if event[0] == topic]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    assert during < 1.5 * before + 5


def latencies(subscriber, seconds):
    """p99 of the time from the arrival of a frame to its verdict, over so many seconds, ms."""
    start = len(subscriber.messages)
    subscriber.for_seconds(seconds)
    totals = sorted(m["latency_ms"]["total"] for m in subscriber.messages[start:])
    return totals[int(len(totals) * 0.99)]
