"""The whole daemon on a real GPU: right, changed over while it runs, short of memory, and with its device lost."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from colour_bundle import VERDICTS
from daemon_process import DaemonProcess, Subscriber
from faulty_camera import FaultyCamera, kind_at
from line import Line, running_daemon

pytestmark = pytest.mark.cuda

CONFIG = """
[model]
bundle = "bundle"
[engine]
device = "cuda"
[publish]
bind = "tcp://127.0.0.1:*"
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[log]
format = "json"
[[cameras]]
name = "line1"
source = "{source}"
[[cameras.rois]]
name = "part"
box = [0, 0, 80, 80]
[recipes.lid]
bundle = "bundle-lid"
rois = [
    {{ camera = "line1", name = "lid", box = [40, 0, 80, 80] }},
    {{ camera = "line1", name = "part", box = [80, 0, 80, 80] }},
]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from colour_network import colour_network

    folder = tmp_path_factory.mktemp("cuda")
    colour_network(folder / "bundle")
    colour_network(folder / "bundle-lid", seed=1)
    (folder / "line.toml").write_text(CONFIG.format(source="usb:0"))
    (folder / "conveyor.toml").write_text(CONFIG.format(source="conveyor:?width=160&height=128&fps=60"))
    return folder


@pytest.fixture
def line(made, monkeypatch):
    with running_daemon(monkeypatch, made / "line.toml", FaultyCamera(fps=200)) as daemon, Line(daemon) as line:
        line.state("ready")
        yield line
        assert all(account.balanced for account in daemon.ledger.snapshot())
        verdicts = [m for topic, m in line.messages if topic.startswith("verdict/") and m["reason"] is None]
        assert verdicts
        assert [m for m in verdicts if m["verdict"] != VERDICTS[kind_at(m["frame"]["pts"])]] == []


def test_every_verdict_is_right(line):
    """200 pictures a second, each of a known kind; the GPU says what each shows."""
    line.until(lambda topic, m: topic == "verdict/line1/part/" and m["seq"] > 1000)


def test_two_line_ups_share_the_gpu_at_each_change_over_and_leave_nothing_behind(line):
    """Twelve changes while it runs: no wrong verdict, and the memory of the ones that went is free again."""
    import torch

    held = []
    for number in range(12):
        reply = line.ask("recipe", name=None if number % 2 else "lid")
        assert reply["ok"], reply
        line.verdict(lambda m, reply=reply: m["recipe"] == reply["recipe"] and m["reason"] is None)
        if number % 2:
            time.sleep(0.2)  # the old one's thread ends
            held.append(torch.cuda.memory_allocated())
    assert held[-1] <= held[0]


def test_a_change_over_without_memory_is_refused_and_the_line_goes_on(line):
    """Somebody took the rest of the GPU: the old line-up needs no more than it has."""
    import torch

    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / torch.cuda.mem_get_info()[1])
    blocks = []
    try:
        for size in (1 << 20, 1 << 14, 512):  # what is reserved and free is taken, too
            try:
                while True:
                    blocks.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                pass
        for _ in range(5):  # what a refused one took is free again
            held = torch.cuda.memory_allocated()
            reply = line.ask("recipe", name="lid")
            assert not reply["ok"]
            assert "cuda:0: no memory for" in reply["error"]["message"], reply
            assert torch.cuda.memory_allocated() == held
        last = max(m["seq"] for topic, m in line.messages if topic.startswith("verdict/"))
        line.verdict(lambda m: m["seq"] > last + 200 and m["recipe"] is None and m["reason"] is None)
    finally:
        blocks.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert line.ask("recipe", name="lid")["ok"]
    line.verdict(lambda m: m["recipe"] == "lid" and m["reason"] is None)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_gpu_at_work_for_minutes_stays_right_and_grows_nowhere(made, monkeypatch):
    """Cameras with faults by the dice as fast as they come, another recipe every five seconds; memory is flat after it.

    INSPECTD_CUDA_SOAK_S sets the length (300 s).
    """
    import torch

    seconds = float(os.environ.get("INSPECTD_CUDA_SOAK_S", "300"))
    faults = {"corrupt": 0.001, "resized": 0.0005, "old": 0.0005, "ended": 0.0002}
    seen, wrong, sizes = 0, [], []
    with (
        running_daemon(monkeypatch, made / "line.toml", FaultyCamera(fps=1000, **faults)) as daemon,
        Line(daemon) as line,
    ):
        line.state("ready")
        began = changed = time.monotonic()
        changes = 0
        while (now := time.monotonic()) - began < seconds:
            if now - changed > 5:
                changed, changes = now, changes + 1
                assert line.ask("recipe", name=None if changes % 2 else "lid")["ok"]
                sizes.append((now - began, resident_mb(), torch.cuda.memory_allocated() / 1e6))
            topic, message = line.until(lambda topic, _: topic.startswith("verdict/"))[-1]
            if message["reason"] is None:
                seen += 1
                if message["verdict"] != VERDICTS[kind_at(message["frame"]["pts"])]:
                    wrong.append((topic, message))
            line.messages.clear()
        assert all(account.balanced for account in daemon.ledger.snapshot())
    assert wrong == []
    # What even changes leave; the two recipes have one and two regions, but one engine each.
    host = np.polyfit(*np.array(sizes)[len(sizes) // 4 :, :2].T, 1)[0] * 3600
    print(f"{seen} judgements, {changes} changes, host {sizes[0][1]:.0f} -> {sizes[-1][1]:.0f} MB ({host:+.0f} MB/h), ")
    print("GPU, MB:", sorted({round(gpu, 1) for _, _, gpu in sizes}))
    first, last = sizes[2 : len(sizes) // 4], sizes[-len(sizes) // 4 :]
    assert max(gpu for _, _, gpu in last) - max(gpu for _, _, gpu in first) < 1  # MB
    assert sizes[-1][1] - sizes[len(sizes) // 4][1] < 30


def resident_mb():
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


SABOTEUR = """
import os, threading, time
def strike():
    while not os.path.exists({signal!r}):
        time.sleep(0.01)
    import torch
    try:
        torch.zeros(4, device="cuda")[torch.tensor([99], device="cuda")].sum().item()  # an assertion on the device
    except RuntimeError:
        pass
threading.Thread(target=strike, daemon=True).start()
"""


def test_a_lost_device_ends_the_process_and_no_verdict_comes_from_it(made, tmp_path):
    """A real failed assertion on the device poisons the process's CUDA context: exit 1, for only a restart helps."""
    (tmp_path / "sitecustomize.py").write_text(SABOTEUR.format(signal=str(tmp_path / "now")))
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path}
    with DaemonProcess(made / "conveyor.toml", env) as daemon, Subscriber(daemon.started().endpoint) as subscriber:
        subscriber.until(lambda m: m["topic"] == "verdict/line1/part/" and m["reason"] is None)
        (tmp_path / "now").touch()
        assert daemon.process.wait(20) == 1
        subscriber.drain()
        assert any("cuda:0" in line for line in daemon.raw[-5:]), daemon.raw[-5:]
        reasons = [m["reason"] for m in subscriber.verdicts if not m["replayed"]]
        judged_after = reasons[reasons.index("engine_error") :] if "engine_error" in reasons else []
        assert None not in judged_after
        beats = [m for m in subscriber.messages if m["topic"].startswith("heartbeat/")]
        assert beats[-1]["state"] != "ready"


def test_a_stop_frees_the_gpu_in_time(made):
    """SIGTERM under full load: exit 0 within five seconds."""
    with DaemonProcess(made / "conveyor.toml") as daemon, Subscriber(daemon.started().endpoint) as subscriber:
        subscriber.until(lambda m: m["topic"] == "verdict/line1/part/" and m["reason"] is None)
        began = time.monotonic()
        assert daemon.stop(number=signal.SIGTERM) == 0
        assert time.monotonic() - began < 5
