"""deploy/plc/reject_gate.py as it is: a process that gets parts on its input and drives a gate, against a line."""

import queue
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_line import FakeLine

from inspectd.verdict.control_schema import ControlError

GLUE = Path(__file__).parent.parent / "deploy" / "plc" / "reject_gate.py"
SHUT, OPEN = "gate shut", "gate open"


class Glue:
    def __init__(self, line):
        command = [sys.executable, str(GLUE), line.verdicts, line.control, "top", "part", "lid"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._said = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self._said.put(line.strip())

    def says(self, timeout_s=20):
        return self._said.get(timeout=timeout_s)

    def part(self, name):
        """A part arrives; what the gate does."""
        self.process.stdin.write(f"{name}\n")
        assert self.says() == SHUT, "while it is inspected"
        return self.says()


@pytest.fixture(scope="module")
def line():
    with FakeLine({"top": ("part", "lid")}) as running:
        yield running


@pytest.fixture(scope="module")
def running(line):
    made = Glue(line)
    try:
        assert (made.says(), made.says()) == (SHUT, SHUT), "before anything is heard, and when all is well"
        until_connected(made, line)
        yield made
    finally:
        made.process.kill()
        made.process.wait(20)


def until_connected(glue, line):
    deadline = time.monotonic() + 20
    while glue.part(f"first{time.monotonic()}") != OPEN:
        assert time.monotonic() < deadline


@pytest.fixture
def glue(running, line):
    line.answers.clear()
    line.on_trigger = "pass"
    return running


def test_it_fits_on_a_page():
    """60 lines or fewer, or nobody reads it."""
    assert len(GLUE.read_text().splitlines()) <= 60


def test_without_a_region_it_does_not_start():
    """Every part would have passed in all of them."""
    with pytest.raises(TypeError, match="region"):
        runpy.run_path(str(GLUE))["main"]("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "top")


def test_only_a_part_that_passed_everywhere_gets_through(glue, line):
    """A fail, an unsure one, and the next good one."""
    assert glue.part("a") == OPEN
    line.on_trigger = "fail"
    assert glue.part("b") == SHUT
    line.on_trigger = "no_result"
    assert glue.part("c") == SHUT
    line.on_trigger = "pass"
    assert glue.part("d") == OPEN
    assert line.await_request("trigger").camera == "top"


def test_one_region_of_two_is_not_enough(glue, line):
    """The other one's answer never comes, or is a fail."""
    line.on_trigger = None
    triggers = len([each for each in line.requests if each.op == "trigger"])
    glue.process.stdin.write("a\n")
    assert glue.says() == SHUT
    line.await_request("trigger", triggers + 1)
    number = line._accept(line.requests[-1]).trigger_id  # the next of the count
    line.verdict("pass", "top", "part", trigger_id=f"trigger-{int(number.rpartition('-')[2]) - 1}")
    assert glue.says() == SHUT


def test_a_refusal_is_a_reject(glue, line):
    """Busy, unknown camera, whatever."""

    def busy(request):
        raise ControlError("busy", "8 are under way")

    line.answers["trigger"] = busy
    assert glue.part("a") == SHUT


def test_a_pass_of_another_trigger_opens_nothing(glue, line):
    """Somebody else's, or one from before."""
    line.on_trigger = None
    glue.process.stdin.write("a\n")
    assert glue.says() == SHUT
    for roi in ("part", "lid"):
        line.verdict("pass", "top", roi, trigger_id="trigger-of-somebody-else")
        line.verdict("pass", "top", roi)
    assert glue.says() == SHUT


def test_silence_shuts_the_gate_within_a_second_while_it_waits_for_a_part(glue, line):
    """From the client's own thread: the main one stands in `part_in_position`."""
    assert glue.part("a") == OPEN
    line.pause_heartbeats()
    line.beat()
    begun = time.monotonic()
    assert glue.says() == SHUT
    assert time.monotonic() - begun < 1.2, "1 s, and a busy machine"
    assert glue.part("b") == SHUT, "a pass while nobody vouches for it"
    line.resume()
    assert glue.says() == SHUT, "all is well again, and that opens nothing"


def test_it_ends_with_its_input_and_shuts_the_gate(glue):
    """The last one of this file: whoever stops it gets a gate that is shut."""
    assert glue.part("last") == OPEN
    glue.process.stdin.close()
    assert glue.says() == SHUT
    assert glue.process.wait(20) == 0
