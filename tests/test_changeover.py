"""Changes that do not come off: what the line goes on with, what is answered, and how the process ends under one."""

import errno
import json
import threading
import time

import pytest
import zmq
from daemon_process import DaemonProcess
from faulty_camera import FaultyCamera
from journal_kit import journal
from line import Line, running_daemon
from scripted_engine import ScriptedEngine
from test_line_changes import CONFIG, folder, made  # noqa: F401

from inspectd import challenge, lineup
from inspectd.errors import InspectdError
from inspectd.recipe_memory import RecipeMemory
from inspectd.verdict.journal.store import Store

FRAME = '{ file = "frame.png", camera = "line1", roi = "part", expect = "pass" }'


@pytest.fixture
def daemon(folder, monkeypatch):  # noqa: F811
    with running_daemon(monkeypatch, folder / "line.toml", FaultyCamera(fps=50)) as daemon:
        yield daemon


@pytest.fixture
def line(daemon):
    with Line(daemon) as line:
        line.state("ready")
        yield line


def long_challenge(folder, pictures):  # noqa: F811
    """A recipe with so many golden pictures."""
    text = CONFIG[: CONFIG.index("[recipes.lid]")]
    (folder / "line.toml").write_text(f"{text}[recipes.lid]\nchallenge = [{', '.join([FRAME] * pictures)}]\n")


def test_a_recipe_that_is_not_written_down_or_not_exchanged_is_not_in_force(daemon, line, folder, monkeypatch):  # noqa: F811
    """Neither now nor after a restart: the reply says no, the old one goes on and is what the journal knows."""
    with monkeypatch.context() as disk:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        for method in ("probe", "append"):
            disk.setattr(Store, method, full)
        line.until(lambda topic, m: topic == "heartbeat/" and m["journal"] == "failing")
        assert line.ask("recipe", name="lid")["error"]["code"] == "journal_failing"
        newest = line.messages[-1][1]["published_at"]
        assert line.verdict(lambda m: m["published_at"] > newest)["recipe"] is None
        (folder / "line.toml").write_text(CONFIG.replace("pass_min = 0.8", "pass_min = 0.9"))
        assert line.ask("reload")["ok"], "the same recipe: nothing has to be remembered"
    line.until(lambda topic, m: topic == "heartbeat/" and m["journal"] == "ok")

    def busy(_):
        raise InspectdError("camera line1: a frame is still being worked on")

    monkeypatch.setattr(daemon.station, "switch", busy)
    assert line.ask("recipe", name="lid")["error"]["code"] == "internal"
    daemon.stop()
    daemon.journal.worker.join(10)
    with journal(folder / "journal.db", "later") as made:  # noqa: F811
        assert RecipeMemory(made).at_start(daemon.settings) == (None, True)


def test_commands_without_end_hold_up_no_challenge_by_the_clock(folder, monkeypatch):  # noqa: F811
    """A client that repeats a refused command: the line-up is held against its golden pictures all the same."""
    (folder / "line.toml").write_text(CONFIG.replace("[challenge]", "[challenge]\nevery_s = 0.1"))
    with (
        running_daemon(monkeypatch, folder / "line.toml", FaultyCamera(fps=50)) as daemon,
        Line(daemon) as line,
    ):
        line.state("ready")
        before, began = daemon.changeover.challenge, time.monotonic()
        while daemon.changeover.challenge is before and time.monotonic() - began < 2:
            assert line.ask("recipe", name="unheard")["error"]["code"] == "unknown_recipe"
        assert daemon.changeover.challenge is not before


def test_a_long_challenge_gives_signs_of_life_and_ends_when_it_is_told(folder, monkeypatch):  # noqa: F811
    """Each picture is a step: the thread is late only where one hangs. A stop waits for one, not for all of them."""
    long_challenge(folder, pictures=50)
    judge, judged, reached = challenge._judge, [], threading.Event()
    with (
        running_daemon(monkeypatch, folder / "line.toml", FaultyCamera(fps=20)) as daemon,
        Line(daemon) as line,
    ):
        line.state("ready")
        worker = daemon.changeover.worker
        before = daemon.station.lineup

        def watched(*arguments):
            judged.append(worker.late_s(time.monotonic()))
            worker.beat(-1.0)  # as if this picture had taken too long
            if len(judged) == 3:
                reached.set()
                assert worker.stopping.wait(10)
            return judge(*arguments)

        monkeypatch.setattr(challenge, "_judge", watched)
        line.control.send(json.dumps({"op": "recipe", "name": "lid"}).encode())
        assert reached.wait(10)
        daemon.stop()
        assert line.control.poll(10_000)
        assert json.loads(line.control.recv())["error"]["code"] == "stopping"
        assert judged == [0.0, 0.0, 0.0]
        assert daemon.station.lineup is before


def test_an_engine_that_hangs_is_refused_and_the_old_one_goes_on(daemon, line, folder, monkeypatch):  # noqa: F811
    """The first golden picture without an answer is the last."""
    monkeypatch.setattr(challenge, "ANSWER_S", 0.2)
    monkeypatch.setattr(lineup, "DRAIN_S", 0.1)
    hung = ScriptedEngine(classes=4, size=(32, 32))
    hung.gate.clear()
    monkeypatch.setattr(lineup, "make_engine", lambda *_: hung)
    (folder / "line.toml").write_text(CONFIG.replace("pass_min = 0.8", "pass_min = 0.9"))
    reply = line.ask("reload")
    assert reply["error"]["code"] == "refused"
    assert reply["error"]["message"].count("got no answer") == 1
    newest = line.messages[-1][1]["published_at"]
    assert line.verdict(lambda m: m["published_at"] > newest and m["reason"] is None)["recipe"] is None
    hung.gate.set()


COMPILING = """
import os
import sys
from inspectd import lineup
from inspectd.cli import main
make, made = lineup.make_engine, []

def make_engine(bundle, config):
    made.append(bundle)
    if len(made) > 1:
        os.write(2, b'{"event": "compiling"}' + bytes([10]))  # in one piece: others write there too
    while len(made) > 1:  # the second is never finished
        make(bundle, config).close()
    return make(bundle, config)

lineup.make_engine = make_engine
main()
"""


def test_a_stop_while_a_model_is_being_compiled(folder):  # noqa: F811
    """Nobody can interrupt that: the command is answered, the process ends in time and as one that was asked to."""
    path = folder / "line.toml"
    text = CONFIG[: CONFIG.index("[challenge]")] + "[recipes.lid]\n"
    path.write_text(text.replace("usb:0", "conveyor:?width=160&height=128"))
    with DaemonProcess(path, program=("-c", COMPILING)) as daemon, zmq.Context() as context:
        control = context.socket(zmq.REQ)
        control.linger = 0
        control.connect(daemon.wait_for_log("started")["control"])
        control.send(json.dumps({"op": "recipe", "name": "lid"}).encode())
        daemon.wait_for_log("compiling")
        since = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - since < 5
        assert control.poll(1000)
        assert json.loads(control.recv())["error"]["code"] == "stopping"
        control.close()
    assert daemon.wait_for_log("stopped")
