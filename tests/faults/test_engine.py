"""The engine falls ill: no verdict from a dead one, READY goes, and the process ends where only that helps."""

import os
import socket
import time
from pathlib import Path

import pytest
from colour_bundle import colour_bundle
from faulty_camera import kind_at
from plant import Plant, wrong
from row import fault
from test_daemon import unbalanced

ROIS = 4
CONFIG = """
[model]
bundle = "bundle"
[publish]
bind = "tcp://127.0.0.1:*"
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[log]
format = "json"
[[cameras]]
name = "line"
source = "usb:0"
frozen_after_s = 0  # its pictures come round again
max_age_ms = 1000
queue_size = 8
""" + "".join(f'[[cameras.rois]]\nname = "part{i}"\nbox = [{40 * i}, 0, 40, 80]\n' for i in range(ROIS))
SCRIPT = Path(__file__).parent / "sick_engine.py"
SOON_S = 1.0
"""In the default suite an engine is given up after so long, not after 8 s."""


class Sick(Plant):
    """The daemon with an engine that falls ill on demand."""

    def __init__(self, folder, kind, hang_s=None):
        colour_bundle(folder / "bundle", size=16)  # as large as the simulated GPU's slots
        (folder / "line.toml").write_text(CONFIG)
        self.address = str(folder / "orders")
        env = os.environ | {"SICK": kind, "ORDERS": self.address}
        if hang_s is not None:
            env["HANG_S"] = str(hang_s)
        super().__init__(folder / "line.toml", lambda message: kind_at(message["frame"]["pts"]), env, program=[SCRIPT])

    def __enter__(self):
        super().__enter__()
        self.judgement()
        self.state("ready")
        return self

    def order(self, state):
        """The engine is so from now on."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as orders:
            orders.sendto(state.encode(), self.address)

    def reason(self, reason):
        """The next fresh no_result with that reason."""
        return self.subscriber.until(lambda m: m.get("reason") == reason and not m.get("replayed", True))

    def ended(self, code, timeout_s=20):
        """The process has ended by itself with that code, and its books balance; all that it said is here."""
        assert self.daemon.process.wait(timeout_s) == code
        assert self.daemon.wait_for_log("books")["balanced"]
        self.ends = code
        self.subscriber.drain(0.2)

    def judged_since(self, moment):
        """Pass or fail about pictures that were taken after that moment."""
        return [m for m in self.judged if m["frame"]["pts"] > moment]


@pytest.fixture(scope="module")
def plants(tmp_path_factory):
    """One daemon of each kind for the faults that it goes on after."""
    with Sick(tmp_path_factory.mktemp("sick"), "openvino") as cpu, Sick(tmp_path_factory.mktemp("gpu"), "cuda") as gpu:
        yield {"openvino": cpu, "cuda": gpu}


@pytest.fixture
def sick(request, plants):
    """The daemon of the kind that the test names, well and at work; afterwards nothing that it said was wrong."""
    plant = plants[request.param]
    plant.subscriber.drain(0.0)
    plant.judgement()
    plant.state("ready")
    yield plant
    plant.order("well")
    assert wrong(plant.fresh, plant.truth) == []
    assert unbalanced(plant.daemon.scrape()) == []


both = pytest.mark.parametrize("sick", ["openvino", "cuda"], indirect=True)
on_cpu = pytest.mark.parametrize("sick", ["openvino"], indirect=True)
on_gpu = pytest.mark.parametrize("sick", ["cuda"], indirect=True)


@fault(
    "Engine",
    "One batch fails",
    injected="an exception of one of OpenVINO's requests",
    does="no_result(engine_error) for the pictures of that batch; the next ones are judged, READY stays",
    protection="a failure is one batch's: the scores' places hold no earlier picture's",
    detect_s=2.0,
    recover_s=2.0,
)
@on_cpu
def test_one_batch_fails(sick, watch):
    """Its pictures are not judged, those after them are."""
    watch.injected()
    sick.order("once")
    failed = sick.reason("engine_error")
    watch.detected()
    sick.subscriber.until(lambda m: m.get("verdict") in ("pass", "fail") and m["frame"]["pts"] > failed["frame"]["pts"])
    watch.recovered()
    assert sick.ready


@fault(
    "Engine",
    "Every batch fails",
    injected="an exception of each of OpenVINO's requests, for two seconds",
    does="no_result(engine_error) for every picture; after a second READY goes; back with the first that succeeds",
    protection="the engine's thread keeps account of failures that follow one another",
    detect_s=4.0,
    recover_s=3.0,
)
@on_cpu
def test_every_batch_fails(sick, watch):
    """Nothing is judged meanwhile, heartbeats say why, and it comes back."""
    watch.injected()
    sick.order("failing")
    sick.reason("engine_error")
    assert "engine-bundle: failing" in sick.state("fault")["reason"]
    watch.detected()
    assert not sick.ready
    watch.over()
    sick.order("well")
    sick.judgement()
    sick.state("ready")
    watch.recovered()


@pytest.mark.soak
@fault(
    "Engine",
    "Every batch fails for good",
    injected="an exception of each of OpenVINO's requests, from then on",
    does="no_result(engine_error) for every picture; READY goes; after 9 s the process ends with exit code 1",
    protection="an engine that does nothing but fail counts as dead",
    detect_s=4.0,
)
@pytest.mark.parametrize("hang_s", [SOON_S, pytest.param(None, marks=pytest.mark.soak)])
def test_every_batch_fails_for_good(tmp_path, watch, hang_s):
    """The end, in good order."""
    with Sick(tmp_path, "openvino", hang_s) as plant:
        watch.injected()
        plant.order("failing")
        failed = plant.reason("engine_error")["frame"]["pts"]
        plant.state("fault")
        watch.detected()
        plant.ended(1)
        assert plant.judged_since(failed) == []
    assert "every batch has failed" in "\n".join(plant.daemon.raw)


@fault(
    "Engine",
    "Scores that are no numbers",
    injected="NaN in place of every score",
    does="no_result(engine_error) for every picture; after a second READY goes; back with the first numbers",
    protection="scores are looked at before they decide: in the engine's thread, and once more in the decision rule",
    detect_s=4.0,
    recover_s=3.0,
)
@both
def test_nan(sick, watch):
    """NaN decides nothing."""
    watch.injected()
    sick.order("nan")
    ill = sick.reason("engine_error")["frame"]["pts"]
    sick.state("fault")
    watch.detected()
    assert sick.judged_since(ill) == []
    watch.over()
    sick.order("well")
    sick.judgement()
    sick.state("ready")
    watch.recovered()


@fault(
    "Engine",
    "Hangs for two seconds",
    injected="the wait for a batch does not come back for two seconds",
    does="after a second READY goes; pictures that waited too long are no_result(stale or overload), never judged; it "
    "comes back by itself",
    protection="the age of a batch with the device is watched; a picture's is looked at again when its scores come, "
    "and once more before it is told",
    detect_s=3.0,
    recover_s=4.0,
)
@both
def test_hang_that_ends(sick, watch):
    """What was too old when its scores came is not judged."""
    watch.injected()
    sick.order("hung")
    begun = time.monotonic()
    assert "engine-bundle: late" in sick.state("fault")["reason"]
    watch.detected()
    sick.subscriber.for_seconds(begun + 2 - time.monotonic())
    watch.over()
    sick.order("well")
    sick.reason("stale")
    sick.judgement()
    sick.state("ready")
    watch.recovered()
    assert max(m["latency_ms"]["total"] for m in sick.judged) < 1500


@fault(
    "Engine",
    "Hangs for good",
    injected="the wait for a batch never comes back",
    does="after a second READY goes and the watchdog is no longer fed; after 9 s the process ends with exit code 1",
    protection="the age of a batch with the device is watched by the main loop",
    detect_s=3.0,
)
@pytest.mark.parametrize("hang_s", [SOON_S, pytest.param(None, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", ["openvino", pytest.param("cuda", marks=pytest.mark.soak)])
def test_hang(tmp_path, watch, kind, hang_s):
    """The end, and nothing is judged in between."""
    with Sick(tmp_path, kind, hang_s) as plant:
        watch.injected()
        plant.order("hung")
        hung = time.monotonic() + 0.2
        assert "engine-bundle: late" in plant.state("fault")["reason"]
        watch.detected()
        plant.ended(1)
        assert plant.judged_since(hung) == []


@fault(
    "Engine",
    "GPU memory runs short",
    injected="a GPU (simulated) with room for a batch of 2 only, then for one picture, then for none",
    does="batches are halved, and everything is judged as before; without room for one picture "
    "no_result(engine_error), and after a second READY goes; back as soon as there is room",
    protection="a batch for which there is no room is run in halves; results that were not written are no scores",
    detect_s=4.0,
    recover_s=3.0,
)
@on_gpu
def test_memory(sick, watch):
    """Halves, then alone, then not at all, then again."""
    start = len(sick.subscriber.messages)
    for size in (2, 1):
        sick.order("hung")
        sick.subscriber.for_seconds(0.2)  # so that more than one picture waits
        sick.order(f"memory {size}")
        sick.daemon.wait_for_log("cuda_out_of_memory", largest_batch=size)
        resumed = time.monotonic()
        sick.subscriber.until(lambda m: m.get("verdict") == "pass" and m["frame"]["pts"] > resumed)  # noqa: B023 - at once
        assert sick.ready
    assert "engine_error" not in {m.get("reason") for m in sick.subscriber.messages[start:]}
    watch.injected()
    sick.order("memory 0")
    without = sick.reason("engine_error")["frame"]["pts"]
    sick.state("fault")
    watch.detected()
    assert sick.judged_since(without) == []
    watch.over()
    sick.order("well")
    sick.judgement()
    sick.state("ready")
    watch.recovered()


@fault(
    "Engine",
    "GPU lost",
    injected="a fatal error of the device (simulated GPU): from then on every call fails",
    does="no verdict from a dead engine: what it had is no_result(engine_error); READY goes, the last heartbeat says "
    "fault; the process ends with exit code 1 and systemd starts it again",
    protection="a fatal error ends the engine's thread, and that ends the daemon",
    detect_s=2.0,
)
def test_lost(tmp_path, watch):
    """Nothing passes after the device is gone, and the process does not go on without it."""
    with Sick(tmp_path, "cuda") as plant:
        watch.injected()
        plant.order("lost")
        plant.state("fault")
        watch.detected()
        plant.ended(1)
        failed = [m["frame"]["pts"] for m in plant.fresh if m["reason"] == "engine_error"]
        assert failed
        assert plant.judged_since(min(failed)) == []
    assert "illegal memory access" in "\n".join(plant.daemon.raw)
