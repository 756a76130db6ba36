"""The process itself: asked to end, killed, stopped, and without descriptors or memory."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest
import zmq
from clip_line import VERDICTS, ClipLine, truth, unbroken
from daemon_process import Subscriber
from journal_kit import query
from plant import Plant, judged
from row import fault
from test_daemon import counters

from inspectd.client import Client
from inspectd.verdict.journal.verify import verify

JOURNAL = '[journal]\npath = "journal.db"'
EVIDENCE = '[evidence]\ndir = "evidence"\nof = ["pass", "fail"]\nmax_per_s = 1000'
MAX_AGE_S = 0.5  # the default of cameras[].max_age_ms


@pytest.fixture
def line(tmp_path):
    return ClipLine(tmp_path)


class Watcher:
    """A client of `inspectd.client` whose line stops by its fail-safe: when it was told to stop, and to run again."""

    def __init__(self, plant):
        started = plant.daemon.wait_for_log("started")
        self._told = threading.Condition()
        self._reason = "connecting"
        self._client = Client(started["verdicts"], started["control"], fail_safe=self._fail_safe)

    def _fail_safe(self, reason):
        with self._told:
            self._reason = reason
            self._told.notify_all()

    def __enter__(self):
        self._client.start()
        self.runs()
        return self

    def __exit__(self, *exc):
        self._client.close()

    def stops(self, timeout_s=10.0):
        """Wait until the line must stop; why."""
        with self._told:
            assert self._told.wait_for(lambda: self._reason is not None, timeout_s)
            return self._reason

    def runs(self, timeout_s=20.0):
        """Wait until the line may run."""
        with self._told:
            assert self._told.wait_for(lambda: self._reason is None, timeout_s), self._reason


def captured(message):
    """When the picture was taken, Unix seconds."""
    return datetime.fromisoformat(message["captured_at"]).timestamp()


def published(message):
    return datetime.fromisoformat(message["published_at"]).timestamp()


def journaled(path, boot_id):
    """What the journal says of the one region in that boot: seq -> verdict."""
    rows = query(path, "SELECT seq, body FROM rows WHERE topic = ? AND boot_id = ?", VERDICTS, boot_id)
    return {seq: json.loads(body)["verdict"] for seq, body in rows}


@fault(
    "Process",
    "SIGTERM",
    injected="SIGTERM while pictures come, with journal and evidence",
    does="says `fault: stopped` and ends with code 0 within 3 s; everything that was published is in the journal, "
    "every picture that was promised is on disk, the last heartbeat names the last verdicts",
    protection="an orderly shutdown, each step with its limit",
    detect_s=3,
    recover_s=6,
)
def test_sigterm(line, tmp_path, watch):
    """`recover` is the end of the process."""
    with Plant(line.config(f"{JOURNAL}\n{EVIDENCE}"), truth) as plant:
        for _ in range(10):
            plant.judgement()
        with Watcher(plant) as client:
            watch.injected()
            plant.daemon.process.send_signal(signal.SIGTERM)
            assert client.stops() == "fault: stopped"
        watch.detected()
        assert plant.daemon.process.wait(10) == 0
        watch.recovered()
    assert plant.daemon.wait_for_log("stopped")["took_s"] < 3
    assert plant.daemon.wait_for_log("stopped")["in_flight"] == 0
    assert unbroken(plant.fresh)
    last = [m for m in plant.subscriber.messages if m["topic"] == "heartbeat/"][-1]
    assert (last["state"], last["topics"][VERDICTS]) == ("fault", plant.fresh[-1]["seq"])
    found = verify(tmp_path / "journal.db")
    assert (found.faults, found.lost) == ([], [])
    told = {m["seq"]: m["verdict"] for m in plant.fresh}
    assert told.items() <= journaled(tmp_path / "journal.db", last["boot_id"]).items()
    pictures = [m["evidence"] for m in plant.fresh if m["evidence"]]
    assert len(pictures) >= 10
    assert [path for path in pictures if not (tmp_path / "evidence" / path).stat().st_size] == []


@fault(
    "Process",
    "SIGKILL",
    injected="SIGKILL while pictures come; then a new start, as systemd does it",
    does="silence: clients stop the line within 1 s; the new process numbers anew under another `boot_id` and goes on "
    "in the same journal, which is whole",
    protection="heartbeats and the client's watch over them; commits that are whole or not there",
    detect_s=3,
    recover_s=30,
    settings="restart at once; systemd's comes 3 s later",
)
def test_sigkill(line, tmp_path, watch):
    """Nothing that was published before is lost beyond the bound of the journal."""
    config = line.config(JOURNAL)
    config.write_text(config.read_text().replace("tcp://127.0.0.1:*", f"ipc://{tmp_path}/stream", 1))
    with Plant(config, truth) as plant:
        plant.ends = -signal.SIGKILL
        with Watcher(plant) as client:
            for _ in range(10):
                plant.judgement()
            watch.injected()
            plant.daemon.process.kill()
            killed_at = time.time()
            assert client.stops() == "silent"
            watch.detected()
            plant.daemon.process.wait(10)
            plant.subscriber.drain()
            watch.over()
            with Plant(config, truth) as again:
                again.judgement()
                client.runs()
                watch.recovered()
    before, after = plant.fresh[0]["boot_id"], again.fresh[0]["boot_id"]
    assert before != after
    kept = journaled(tmp_path / "journal.db", before)
    missing = [m for m in plant.fresh if m["seq"] not in kept]
    assert all(killed_at - published(m) < 0.5 for m in missing)  # commit_ms and a commit of a busy disk
    assert again.fresh[0]["seq"] in journaled(tmp_path / "journal.db", after)
    assert verify(tmp_path / "journal.db").faults == []


@pytest.mark.parametrize("stopped_s", [4, pytest.param(30, marks=pytest.mark.soak)])
@fault(
    "Process",
    "SIGSTOP and SIGCONT under load",
    injected="SIGSTOP of the daemon for 4 s and for 30 s, with pictures waiting in the engine's queue, then SIGCONT",
    does="clients stop the line within 1 s; what was captured before the stop is `stale`, never a judgement; then it "
    "goes on",
    protection="the age of a picture is asked before and after the engine, and once more when its verdict is sent",
    detect_s=3,
    recover_s=10,
)
def test_stopped_for_a_while(tmp_path, watch, stopped_s):
    """Whatever was on its way is told as what it is: too old."""
    line = ClipLine(tmp_path, fps=50)
    # Pictures wait 0.2 s for a full batch, so that there always are some on their way.
    config = line.config("[engine]\nmax_wait_ms = 200\nmax_batch_size = 32", "queue_size = 32")
    with Plant(config, truth) as plant, Watcher(plant) as client:
        plant.judgement()
        while sum(counters(plant.daemon.scrape(), "inspectd_frames_in_flight").values()) != 1:
            pass  # one waits, and its batch is far from complete: the engine may take as few as four at once
        watch.injected()
        stopped_at = time.time()
        plant.daemon.process.send_signal(signal.SIGSTOP)
        assert client.stops() == "silent"
        watch.detected()
        plant.subscriber.for_seconds(stopped_s - 1)
        received = len(plant.fresh)
        watch.over()
        goes_on_at = time.time()
        plant.daemon.process.send_signal(signal.SIGCONT)
        client.runs()
        plant.judgement()
        watch.recovered()
        plant.subscriber.for_seconds(1)
        late = plant.fresh[received:]
        told = [m for m in late if published(m) > stopped_at + 1]  # ZeroMQ may have had the one before in hand
        assert [m for m in judged(told) if captured(m) < goes_on_at - MAX_AGE_S] == []
        old = [m for m in told if captured(m) < stopped_at + MAX_AGE_S]
        assert old, "nothing was on its way: the fault was none"
        assert {(m["verdict"], m["reason"]) for m in old} <= {("no_result", "stale"), ("no_result", "overload")}
        assert unbroken(plant.fresh)


@pytest.mark.soak
@fault(
    "Process",
    "No file descriptors left",
    injected="RLIMIT_NOFILE of the running daemon lowered to what it has open; new connections wait at the HTTP port",
    does="verdicts go on; pictures are told as lost; who is connected stays connected, who is new waits; no core is "
    "lost to trying again",
    protection="every open and accept that fails is a state that is tried again later",
    detect_s=5,
    recover_s=15,
)
def test_no_file_descriptors(line, watch):
    """It recovers by itself as soon as there are some again; newcomers get in, the old ones never left."""
    with Plant(line.config(f"{JOURNAL}\n{EVIDENCE}"), truth) as plant, Watcher(plant) as client:
        plant.judgement()
        pid = plant.daemon.process.pid
        with lowered(pid, resource.RLIMIT_NOFILE, first_free_descriptor(pid)):
            watch.injected()
            plant.subscriber.until(lambda m: m.get("verdict") in ("pass", "fail") and m["evidence"] is None)
            plant.daemon.wait_for_log("evidence_failing")
            watch.detected()
            host, _, port = plant.daemon.url.rpartition("//")[2].rpartition(":")
            with socket.create_connection((host, int(port))):  # the kernel lets it in, the daemon cannot
                used, since = processor_s(pid), time.monotonic()
                plant.subscriber.for_seconds(1.5)
                plant.judgement("pass")
                assert processor_s(pid) - used < 0.7 * (time.monotonic() - since)
            assert plant.daemon.process.poll() is None
            watch.over()
        client.runs()
        plant.subscriber.until(lambda m: m.get("evidence"))
        with Subscriber(plant.daemon.endpoint) as newcomer:
            newcomer.until(lambda m: m["topic"] == VERDICTS and not m["replayed"])
        assert plant.ready
        watch.recovered()
        assert unbroken(plant.fresh)


@pytest.mark.soak
@fault(
    "Process",
    "No memory left for it (address space)",
    injected="RLIMIT_AS of the running daemon lowered to half of what it has mapped: nothing can be mapped any more; "
    "requests of 2 MB, scrapes and a reload ask for more",
    does="verdicts go on with what memory there is; /metrics and /readyz do not answer; what cannot go on without ends "
    "in a fault, or in the end of the process and a new start",
    protection="no thread survives an error that it does not know; what a request took is given back when it fails",
    detect_s=15,
    recover_s=30,
)
def test_no_address_space(line, watch):
    """Which of these it is depends on who asks for memory first; none of them passes a part."""
    config = line.config()
    with Plant(config, truth) as plant, Watcher(plant) as client:
        plant.judgement()
        pid = plant.daemon.process.pid
        with lowered(pid, resource.RLIMIT_AS, address_space(pid) // 2), stranger_to(plant) as stranger:
            watch.injected()
            plant.daemon.process.send_signal(signal.SIGHUP)
            for _ in range(20):  # more than the server has places for
                assert not plant.ready
                stranger()
            watch.detected()
            plant.subscriber.for_seconds(1)
            watch.over()
        if plant.daemon.process.poll() is None:
            client.runs()
            assert plant.ready
            plant.judgement("pass")
        else:
            plant.ends = plant.daemon.process.returncode
            assert plant.ends not in (0, 2), "systemd would not start it again"
            with Plant(config, truth) as again:
                again.judgement()
        watch.recovered()


@pytest.mark.soak
@fault(
    "Process",
    "Killed for memory",
    injected="the memory of its control group runs out: a limit of what it uses, and a neighbour in it that takes more",
    does="the kernel kills it; silence: clients stop the line within 1 s; systemd starts it again",
    protection="heartbeats and the client's watch over them",
    detect_s=20,
    recover_s=30,
    settings="restart at once; systemd's comes 3 s later",
)
def test_killed_for_memory(line, watch):
    """The same end as SIGKILL, and by the hand of the kernel."""
    config = line.config()
    plant = Plant(config, truth)
    with memory_group(plant) as limit, plant, Watcher(plant) as client:
        plant.judgement()
        plant.ends = -signal.SIGKILL
        watch.injected()
        limit()
        plant.daemon.process.wait(15)
        assert client.stops() == "silent"
        watch.detected()
        plant.subscriber.drain()
        watch.over()
        with Plant(config, truth) as again:
            again.judgement()
        watch.recovered()


@contextmanager
def stranger_to(plant):
    """Sends the control socket 2 MB of nothing with each call."""
    with zmq.Context.instance().socket(zmq.DEALER) as stranger:
        stranger.set(zmq.LINGER, 0)
        stranger.connect(plant.daemon.wait_for_log("started")["control"])

        def send():
            with suppress(zmq.Again):
                stranger.send(bytes(2_000_000), zmq.NOBLOCK)
            plant.subscriber.receive(0.01)

        yield send


# -- limits of a running process ------------------------------------------------------------------------------


@contextmanager
def lowered(pid, limit, to):
    """A limit of another process, lowered for a while."""
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (to, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, limit, before)


def first_free_descriptor(pid):
    """The lowest that is free, also while no file is open just for a moment."""
    lowest = []
    for _ in range(40):
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH208 - names are all that is wanted
        lowest.append(min(set(range(max(used) + 2)) - used))
        time.sleep(0.005)
    return min(lowest)


def address_space(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def processor_s(pid):
    """What it has used of a core so far, all threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


NEIGHBOUR = """
import sys, time
sys.stdin.readline()
taken = []
while True:
    taken.append(bytes([1]) * 2**20)
    time.sleep(0.01)
"""


@contextmanager
def memory_group(plant):
    """Put the process, just begun, into a control group; gives what makes the group run out of memory.

    Of it and the neighbour that takes the memory the kernel shall choose the daemon.
    """
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    is_old = (old / "memory.limit_in_bytes").exists()
    group = (old if is_old else new) / f"inspectd-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(plant.daemon.process.pid))
        used = group / ("memory.usage_in_bytes" if is_old else "memory.current")
        most = group / ("memory.limit_in_bytes" if is_old else "memory.max")
        most.write_text(str(2**40))
        Path(f"/proc/{plant.daemon.process.pid}/oom_score_adj").write_text("1000")
    except OSError as err:
        plant.daemon.__exit__()
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group for memory here: {err}")

    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdin=subprocess.PIPE) as neighbour:

        def run_out():
            (group / "cgroup.procs").write_text(str(neighbour.pid))
            most.write_text(str(int(used.read_text()) + 2**20))
            neighbour.stdin.write(b"now\n")
            neighbour.stdin.flush()

        try:
            yield run_out
        finally:
            neighbour.kill()
            neighbour.wait(10)
            plant.daemon.__exit__()
            group.rmdir()
