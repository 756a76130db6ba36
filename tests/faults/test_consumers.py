"""Whoever listens: one that stands still, two hundred, and strangers who come and go by the hundred."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq
from clip_line import VERDICTS, ClipLine, truth, unbroken
from daemon_process import Subscriber
from journal_kit import eventually
from plant import Plant
from row import fault
from test_daemon import counters

from inspectd.verdict.connections import MAX_CONNECTIONS

LISTENER = """
import json, sys, zmq
context = zmq.Context()
stream = context.socket(zmq.SUB)
stream.set(zmq.RCVHWM, 1)
stream.subscribe("verdict/")
stream.connect(sys.argv[1])
while True:
    message = json.loads(stream.recv_multipart()[1])
    if not message["replayed"]:
        print(message["seq"], flush=True)
"""
"""A subscriber with hardly any room of its own, so that it is the daemon's that fills up."""


def resident_mb(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names are all that is wanted


@pytest.fixture
def listener():
    """Starts it on an endpoint; ends it whatever happens."""
    started = []

    def start(endpoint):
        process = subprocess.Popen([sys.executable, "-c", LISTENER, endpoint], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.mark.soak
@fault(
    "Consumers",
    "A subscriber stops reading",
    injected="SIGSTOP of the subscriber's process, until its queue in the daemon is full; then SIGCONT",
    does="the others miss nothing and wait for nothing; it loses messages and sees that by the gap in `seq`",
    protection="a bounded queue for each subscriber (`publish.send_queue`), nobody waits for it",
    recover_s=5,
    settings="`publish.send_queue = 20`, 100 verdicts a second, for 6 s, by Unix socket (TCP holds minutes of them)",
)
def test_a_subscriber_that_stops_reading(tmp_path, watch, listener):
    """Memory stays where it is, and the frozen one is told as soon as it reads again."""
    config = ClipLine(tmp_path, fps=100).config()
    publish = f'[publish]\nbind = "ipc://{tmp_path}/stream"\nsend_queue = 20'
    config.write_text(config.read_text().replace('[publish]\nbind = "tcp://127.0.0.1:*"', publish))
    with Plant(config, truth) as plant:
        slow = listener(plant.daemon.endpoint)
        seen = [int(slow.stdout.readline())]
        before = resident_mb(plant.daemon.process.pid)
        watch.injected()
        slow.send_signal(signal.SIGSTOP)
        plant.subscriber.for_seconds(6)
        assert resident_mb(plant.daemon.process.pid) - before < 10
        watch.over()
        slow.send_signal(signal.SIGCONT)
        while len(seen) < 2 or seen[-1] == seen[-2] + 1:
            seen.append(int(slow.stdout.readline()))
        watch.recovered()
        plant.subscriber.until(lambda m: m["topic"] == VERDICTS and m["seq"] > seen[-1])
        assert unbroken(plant.fresh)


@fault(
    "Consumers",
    "200 subscribers at once",
    injected=f"{MAX_CONNECTIONS} connections to the verdict stream, and one more",
    does=f"each gets every verdict; a connection beyond {MAX_CONNECTIONS} is ended at once and the log says so",
    protection="a limit on the connections of each socket",
    detect_s=10,
    recover_s=10,
)
def test_two_hundred_subscribers(tmp_path, watch):
    """All of them without a gap; the one too many costs nobody anything; when they are gone there is room again."""
    with Plant(ClipLine(tmp_path, fps=10).config(), truth) as plant:
        plant.judgement()
        crowd = [Subscriber(plant.daemon.endpoint, ("verdict/",)) for _ in range(MAX_CONNECTIONS - 1)]
        try:
            subscribed(plant, MAX_CONNECTIONS)
            watch.injected()
            with Subscriber(plant.daemon.endpoint, ("verdict/",)) as late:
                plant.daemon.wait_for_log("connection_refused", socket="publish")
                watch.detected()
                last = plant.judgement()["seq"]
                for _ in range(10):
                    last = plant.judgement()["seq"]
                assert late.verdicts == []
            for each in crowd:
                each.until(lambda m: m["seq"] >= last)
                assert unbroken([m for m in each.verdicts if not m["replayed"]])
        finally:
            for each in crowd:
                each.close()
        watch.over()
        subscribed(plant, 1)
        with Subscriber(plant.daemon.endpoint, ("verdict/",)) as welcome:
            welcome.until(lambda m: not m["replayed"])
        watch.recovered()
        assert unbroken(plant.fresh)


def subscribed(plant, count):
    """Wait until the daemon counts so many subscribers."""
    eventually(lambda: list(counters(plant.daemon.scrape(), "inspectd_subscribers").values()) == [count])


GREETING = b"\xff" + bytes(8) + b"\x7f\x03"
GARBAGE = (
    b"",
    b"GET /metrics HTTP/1.1\r\nHost: x",
    b"GET /metrics HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00" + bytes(500),
    GREETING,
    GREETING[:5],
    GREETING + b"\x01NULL" + bytes(48) + b"\x04\x26\x05READY",
)
CONNECTIONS = 600
CALLERS = 3


class Storm:
    """Connections to these addresses one after the other, each with something half said, then cut off or closed."""

    def __init__(self, addresses, seed):
        self.made = 0
        self._addresses = addresses
        self._dice = random.Random(seed)
        self._calm = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._calm.set()
        self._thread.join(10)

    def _run(self):
        while not self._calm.is_set():
            try:
                with socket.create_connection(self._dice.choice(self._addresses), timeout=2) as stranger:
                    if self._dice.random() < 0.5:  # gone with a reset, in the middle of what the daemon reads
                        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    stranger.sendall(self._dice.choice((*GARBAGE, self._dice.randbytes(3000))))
            except OSError:
                continue  # refused, or ended by the daemon: that is its right
            self.made += 1


def address(url):
    host, port = url.rpartition("//")[2].rsplit(":", 1)
    return host, int(port)


@pytest.mark.soak
@fault(
    "Consumers",
    "Connect and disconnect storms",
    injected=f"{CONNECTIONS} connections, some hundred a second, to the verdict, control and HTTP ports, "
    "with garbage and half requests, closed or reset",
    does="verdicts go on without a gap; the control socket answers; memory, descriptors and "
    "the subscriber count are as before",
    protection="so many events a turn, limits on connections and time, one log line in 10 s",
    recover_s=10,
)
def test_storms_of_strangers(tmp_path, watch):
    """Who is connected notices nothing; and the daemon can be stopped in the middle of it."""
    with Plant(ClipLine(tmp_path).config(), truth) as plant:
        started = plant.daemon.wait_for_log("started")
        control = zmq.Context.instance().socket(zmq.REQ)
        control.set(zmq.LINGER, 0)
        control.connect(started["control"])
        ask(control)
        pid = plant.daemon.process.pid
        plant.judgement()
        files, memory = descriptors(pid), resident_mb(pid)
        targets = [address(url) for url in (started["verdicts"], started["control"], started["http"])]
        watch.injected()
        storms = [Storm(targets, seed) for seed in range(CALLERS)]
        with storms[0], storms[1], storms[2]:
            while sum(storm.made for storm in storms) < CONNECTIONS:
                plant.subscriber.for_seconds(0.2)
                assert ask(control)["ok"]
        watch.over()
        eventually(lambda: descriptors(pid) <= files)
        subscribed(plant, 1)
        watch.recovered()
        assert resident_mb(pid) - memory < 25
        assert unbroken(plant.fresh)
        assert sum(line["event"] == "handshake_failed" for line in plant.daemon.logs) <= 6
        plant.judgement()
        with Storm(targets, 9):
            began = time.monotonic()
            assert plant.daemon.stop() == 0
            assert time.monotonic() - began < 5
        control.close()


def ask(control):
    """The reply to a request for the status."""
    control.send(b'{"op": "status"}')
    assert control.poll(5000)
    return json.loads(control.recv())
