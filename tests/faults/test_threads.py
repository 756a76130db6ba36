"""Every thread of the daemon, killed and hung, each in turn: that is told at once, and nothing stays as it is."""

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from colour_bundle import colour_bundle
from faulty_camera import kind_at
from plant import Plant, wrong
from row import fault
from test_daemon import unbalanced

from inspectd.verdict.keys import load_certificate, write_pair, write_public

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
max_per_s = 2
[security]
server_key = "server.key_secret"
client_keys = "clients"
[log]
format = "json"
[[cameras]]
name = "line"
source = "usb:0"
stall_timeout_s = 0.5
[[cameras.rois]]
name = "part"
box = [0, 0, 80, 80]
"""
THREADS = {
    "MainThread", "zeromq", "engine-bundle", "changeover", "journal", "replay", "evidence", "access", "http",
    "http-request", "capture-line",
}  # fmt: skip
"""Every one of them has a row here. A thread that is not in this list fails every row: add it, and its fate."""
VITAL = ["zeromq", "engine", "changeover", "journal", "replay", "evidence", "access", "http"]
"""Threads that cannot be replaced."""
PLACES = {place: "engine-bundle" if place == "engine" else place for place in VITAL}
SCRIPT = Path(__file__).parent / "saboteur.py"
SOON_S = 1.0
"""In the default suite a hung thread is given up after so long, not after 8 s."""


class Sabotaged(Plant):
    """The daemon with everything switched on, a saboteur in it, and somebody who plays systemd's watchdog."""

    def __init__(self, folder):
        keys = load_certificate(write_pair(folder, "server")[1], secret=True)
        (folder / "clients" / "read").mkdir(parents=True)
        me = load_certificate(write_pair(folder, "me")[1], secret=True)
        write_public(folder / "clients" / "read" / "me.key", me.public)
        colour_bundle(folder / "bundle")
        (folder / "line.toml").write_text(CONFIG)
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.bind(str(folder / "systemd"))
        self.told_systemd = []  # in order; read by a thread, for the socket holds a few only
        threading.Thread(target=self.listen, daemon=True).start()
        self.orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.orders.bind(str(folder / "orders"))
        self.orders.settimeout(10)
        self.saboteur = str(folder / "saboteur")
        env = os.environ | {
            "SABOTEUR": self.saboteur, "NOTIFY_SOCKET": str(folder / "systemd"), "WATCHDOG_USEC": "400000"
        }  # fmt: skip
        super().__init__(
            folder / "line.toml",
            lambda message: kind_at(message["frame"]["pts"]),
            env,
            program=[SCRIPT],
            curve=(keys.public, me.public, me.secret),
        )

    def __enter__(self):
        super().__enter__()
        try:
            self.at_work()
        except BaseException:
            self.__exit__(AssertionError)
            raise
        return self

    def __exit__(self, kind, *exc):
        super().__exit__(kind, *exc)
        self.orders.sendto(b"over", self.systemd.getsockname())
        self.orders.close()

    def at_work(self):
        """It judges and is ready, and every thread that it has stands in the list."""
        self.judgement()
        deadline = time.monotonic() + 20
        while not self.ready:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        names = self.names()
        assert names <= THREADS, f"threads without a row: {names - THREADS}"
        assert names >= THREADS - {"http-request"}

    def names(self):
        """The threads that it has. Orders are carried out one after the other: every earlier one has been taken."""
        self.orders.sendto(b"names", self.saboteur)
        return set(json.loads(self.orders.recv(4000))) - {"saboteur"}

    def sabotage(self, place, fate):
        self.orders.sendto(f"{place} {fate}".encode(), self.saboteur)

    def until_unready(self, timeout_s=10.0):
        """Until /readyz says 503, answers nothing, or the process is gone."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.daemon.process.poll() is None:
            try:
                with urllib.request.urlopen(self.daemon.url + "/readyz", timeout=0.5):
                    time.sleep(0.05)
            except OSError:  # HTTPError too
                return
        assert self.daemon.process.poll() is not None, "still ready"

    def listen(self):
        while (message := self.systemd.recv(4000).decode()) != "over":
            self.told_systemd.append(message)

    def until_unanswered(self):
        """Until /readyz gives no answer, while the process lives."""
        with pytest.raises(OSError, match="timed out"):
            [self.parts() for _ in range(100)]

    def parts(self):
        """What /readyz says of each part, {name: "ok" or why not}."""
        try:
            with urllib.request.urlopen(self.daemon.url + "/readyz", timeout=2) as answer:
                return json.load(answer)["parts"]
        except urllib.error.HTTPError as err:
            return json.load(err)["parts"]

    def kill(self):
        """End it as systemd's watchdog would."""
        self.ends = self.daemon.stop(number=signal.SIGKILL)

    def ended(self, code, timeout_s=20):
        """The process has ended by itself with that code, and its books balance."""
        assert self.daemon.process.wait(timeout_s) == code
        assert self.daemon.wait_for_log("books")["balanced"]
        self.ends = code


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Call it for a daemon to sabotage; the next one starts in the meantime."""
    spare = []

    def take(hang_s=SOON_S):
        spare.append(Sabotaged(tmp_path_factory.mktemp("plant")))
        plant = spare.pop(0) if len(spare) > 1 else Sabotaged(tmp_path_factory.mktemp("plant"))
        if hang_s is not None:
            plant.daemon.started()
            plant.sabotage("HANG_S", hang_s)
        return plant

    yield take
    for plant in spare:
        plant.daemon.__exit__()


@pytest.fixture(scope="module")
def shared(fresh):
    """One daemon for the faults that it goes on after."""
    with fresh() as plant:
        yield plant


@pytest.fixture
def at_work(shared):
    """It is at work when the test begins, and says nothing wrong."""
    shared.at_work()
    yield shared
    assert wrong(shared.fresh, shared.truth) == []
    assert unbalanced(shared.daemon.scrape()) == []


def faults_told(messages):
    return [m for m in messages if m["topic"] == "heartbeat/" and m["state"] == "fault"]


def fed_after_fault(told):
    """How often the watchdog was fed after systemd was told of the fault."""
    first = next(number for number, message in enumerate(told) if message.startswith("STATUS=fault"))
    return sum("WATCHDOG=1" in message for message in told[first:])


@fault(
    "Threads",
    "A thread dies",
    injected="an exception that nothing catches, in each thread that cannot be replaced: zeromq, engine, changeover, "
    "journal, replay, evidence, access, http",
    does="READY goes; every verdict that waits is sent, the last heartbeat says fault (silence where it is zeromq that "
    "died); the process ends with exit code 1 and systemd starts it again",
    protection="the main loop sees on each turn whether every such thread runs",
    detect_s=2.0,
)
@pytest.mark.parametrize(
    "place",
    [*VITAL[:4], *(pytest.param(place, marks=pytest.mark.soak) for place in VITAL[4:])],
)
def test_killed(fresh, watch, place):
    """The process ends with 1 at once, in good order."""
    with fresh(hang_s=None) as plant:
        before = len(plant.subscriber.messages)
        watch.injected()
        plant.sabotage(place, "killed")
        plant.until_unready()
        watch.detected()
        plant.ended(1)
        plant.subscriber.drain(0.1)
        assert place == "zeromq" or faults_told(plant.subscriber.messages[before:])
    assert PLACES[place] == plant.daemon.wait_for_log("thread_failed")["thread"]
    assert "no sign of life" not in "\n".join(plant.daemon.raw)  # that would have been 9 s later


@fault(
    "Threads",
    "A thread hangs",
    injected="a wait without end, in each thread that cannot be replaced: zeromq, engine, changeover, journal, replay, "
    "evidence, access, http",
    does="READY goes and heartbeats say fault (silence where it is zeromq that hangs), the watchdog is no longer fed; "
    "after 9 s the process ends with exit code 1 and systemd starts it again",
    protection="each thread gives a sign of life on every turn; one that is overdue is late, one that stays so is "
    "given up. A disk that hangs is no thread that hangs: see the journal and the evidence",
    detect_s=3.0,
)
@pytest.mark.soak
@pytest.mark.parametrize("place", VITAL)
def test_hung(fresh, watch, place):
    """Late within a second or two, and then the end."""
    with fresh(hang_s=None) as plant:
        before = len(plant.subscriber.messages)
        watch.injected()
        plant.sabotage(place, "hung")
        plant.until_unready()
        watch.detected()
        plant.ended(1)
        assert fed_after_fault(plant.told_systemd) == 0
        plant.subscriber.drain(0.1)
        told = faults_told(plant.subscriber.messages[before:])
        assert place == "zeromq" or f"{PLACES[place]}: late" in told[0]["reason"]
    assert "no sign of life" in "\n".join(plant.daemon.raw)


@fault(
    "Threads",
    "Many threads hang",
    injected="a wait without end in replay, evidence, journal, access, changeover and engine at once, then in zeromq, "
    "then in http",
    does="each is named in heartbeats and in /readyz; zeromq's hang is the heartbeats' silence, and named in /readyz; "
    "http's is that it answers nobody; the watchdog is not fed, so systemd kills what does not end by itself",
    protection="no thread's sign of life depends on another's",
    detect_s=3.0,
    settings="no thread is given up",
)
def test_each_hung_thread_is_named(fresh, watch):
    """All in one daemon, which is killed at the end, as systemd's watchdog would."""
    with fresh(hang_s=1e6) as plant:
        watch.injected()
        hung = ["replay", "evidence", "journal", "access", "changeover", "engine"]
        for place in hung:
            plant.sabotage(place, "hung")
        told = plant.subscriber.until(
            lambda m: m["topic"] == "heartbeat/" and all(f"{PLACES[each]}: late" in str(m["reason"]) for each in hung)
        )
        watch.detected()
        assert told["state"] == "fault"
        assert {name for name, why in plant.parts().items() if why == "late"} == {PLACES[each] for each in hung}
        plant.sabotage("zeromq", "hung")
        while plant.parts()["zeromq"] != "late":
            plant.subscriber.receive(0.1)
        assert plant.subscriber.receive(1.0) is None
        plant.sabotage("http", "hung")
        plant.until_unanswered()
        assert plant.daemon.process.poll() is None
        assert fed_after_fault(plant.told_systemd) == 0
        plant.kill()


@fault(
    "Threads",
    "The main thread dies",
    injected="an exception that nothing catches, in the main loop",
    does="the last heartbeat says fault, the process ends with exit code 1 and systemd starts it again",
    protection="whatever ends the main loop, the shutdown is the same",
    detect_s=2.0,
)
def test_main_killed(fresh, watch):
    """No daemon without its supervisor."""
    with fresh() as plant:
        watch.injected()
        plant.sabotage("main", "killed")
        plant.state("fault")
        watch.detected()
        plant.ended(1)


@fault(
    "Threads",
    "The main thread hangs",
    injected="a wait without end in the main loop",
    does="heartbeats and /readyz say fault; the watchdog is no longer fed, so systemd kills the process; /healthz says "
    "503 after 8 s, for containers",
    protection="what the main loop says holds for less than a second, and it says it on every turn",
    detect_s=3.0,
)
def test_main_hung(fresh, watch):
    """The others notice that nobody supervises them any more."""
    with fresh() as plant:
        watch.injected()
        plant.sabotage("main", "hung")
        assert plant.state("fault")["reason"] == "main: late"
        watch.detected()
        assert not plant.ready
        assert plant.parts()["main"] == "late"
        fed = plant.told_systemd.count("WATCHDOG=1")
        plant.subscriber.for_seconds(2 * SOON_S)
        assert plant.told_systemd.count("WATCHDOG=1") == fed
        assert plant.daemon.status_code("/healthz") == 503
        assert plant.daemon.process.poll() is None
        plant.kill()


@fault(
    "Threads",
    "The capture thread dies",
    injected="an exception that nothing catches, in the camera's thread",
    does="the camera's status is fault (internal), READY goes; the camera gets a new thread",
    protection="the camera looks after its thread on each turn of the main loop",
    detect_s=2.0,
    recover_s=5.0,
)
def test_capture_killed(at_work, watch):
    """Replaced; the process goes on."""
    watch.injected()
    at_work.sabotage("capture", "killed")
    assert at_work.camera("fault")["reason"] == "internal"
    watch.detected()
    at_work.state("fault")
    at_work.judgement()
    watch.recovered()


@fault(
    "Threads",
    "The capture thread hangs in a library",
    injected="a wait without end in the camera's thread, while it waits for a frame",
    does="the camera's status is fault (stall, then hung), READY goes; the thread is given up, another takes its place",
    protection="stall_timeout_s; what the old thread may still deliver is refused",
    detect_s=2.5,
    recover_s=7.0,
    settings="stall_timeout_s = 0.5",
)
def test_capture_hung(at_work, watch):
    """Given up and replaced; the process goes on."""
    watch.injected()
    at_work.sabotage("capture", "hung")
    assert at_work.camera("fault")["reason"] == "stall"
    watch.detected()
    assert at_work.camera("fault")["reason"] == "hung"
    at_work.judgement()
    watch.recovered()


@fault(
    "Threads",
    "A thread that answers HTTP dies",
    injected="an exception that nothing catches, in the thread of one request to /metrics",
    does="that request gets no answer, the next one does; nothing else is touched",
    protection="a request has a thread of its own",
    recover_s=2.0,
)
def test_request_killed(at_work, watch):
    """One request's thread is nobody else's."""
    watch.injected()
    at_work.sabotage("http-request", "killed")
    at_work.names()  # the order has been taken: the next request meets it
    with pytest.raises(OSError, match=r"closed|reset"):
        at_work.daemon.scrape()
    assert at_work.daemon.scrape()
    watch.recovered()
    assert at_work.ready


@fault(
    "Threads",
    "A thread that answers HTTP hangs",
    injected="a wait without end in the thread of one request to /metrics",
    does="that request is cut off after 5 s, others are answered meanwhile; nothing else is touched",
    protection="a request has a thread of its own, and a limit in time",
    recover_s=2.0,
)
def test_request_hung(at_work, watch):
    """The next is answered at once."""
    watch.injected()
    at_work.sabotage("http-request", "hung")
    at_work.names()
    with pytest.raises(OSError, match="timed out"):
        urllib.request.urlopen(at_work.daemon.url + "/metrics", timeout=0.5)
    assert at_work.daemon.scrape()
    watch.recovered()
    assert at_work.ready


@fault(
    "Threads",
    "The capture thread hangs in inspectd itself",
    injected="a wait without end in the camera's thread, a frame in its hands",
    does="the camera's status is fault (hung), READY goes; nobody can take the frame out of its hands, so "
    "after 9 s more the process ends with exit code 1 and systemd starts it again",
    protection="the camera watches how long a frame is being delivered",
    detect_s=2.5,
    settings="stall_timeout_s = 0.5",
)
@pytest.mark.parametrize("hang_s", [SOON_S, pytest.param(None, marks=pytest.mark.soak)])
def test_sink_hung(fresh, watch, hang_s):
    """A fault, and then the end."""
    with fresh(hang_s) as plant:
        watch.injected()
        plant.sabotage("sink", "hung")
        assert plant.camera("fault")["reason"] == "hung"
        watch.detected()
        plant.ended(1)
