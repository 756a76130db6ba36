"""`inspectd demo`, as somebody tries it who has nothing but this package."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from daemon_process import Subscriber

pytestmark = pytest.mark.timeout(600)


def demo(directory, *arguments):
    return [sys.executable, "-m", "inspectd", "demo", "--dir", str(directory), *arguments]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The first run: draws, trains, shows."""
    directory = tmp_path_factory.mktemp("demo") / "demo"
    process = subprocess.Popen(
        demo(directory, "--seconds", "9"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=560)
    finally:
        process.terminate()  # where it took too long: it takes its daemon along, killed it could not
        process.wait(30)
    return directory, subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_from_nothing_to_live_verdicts_beside_the_truth(made):
    """It ends well, agrees with the truth, passes next to nothing wrongly, and loses no verdict."""
    _, done = made
    assert done.returncode == 0, done.stdout + done.stderr
    right, compared = map(int, re.search(r"right: (\d+) of (\d+) frames", done.stdout).groups())
    wrong_pass = int(re.search(r"wrong PASS: (\d+)", done.stdout)[1])
    assert compared > 100
    assert right / compared > 0.8, done.stdout
    assert wrong_pass / compared < 0.03, done.stdout
    assert "verdicts lost on the way: 0" in done.stdout
    assert re.search(r"metrics\s+http://127\.0\.0\.1:\d+/metrics", done.stdout)
    assert re.search(r"verdicts\s+tcp://127\.0\.0\.1:\d+", done.stdout)
    assert float(re.search(r"([\d.]+) fps, latency", done.stdout)[1]) > 20


def test_the_second_run_uses_what_is_there_and_ends_on_ctrl_c(made):
    """No training again; SIGINT to the whole process group, as a terminal sends it, ends it cleanly."""
    directory, _ = made
    process = subprocess.Popen(
        demo(directory), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    seen = []
    started = time.monotonic()
    for line in process.stdout:
        seen.append(line)
        if match := re.search(r"verdicts\s+(tcp://\S+)", line):
            endpoint = match[1]
        if " fps " in line:
            break
        assert time.monotonic() - started < 60
    assert not any("training" in line for line in seen)
    with Subscriber(endpoint, ["verdict/"]) as subscriber:
        subscriber.until(lambda message: not message["replayed"])
    signal_at = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert time.monotonic() - signal_at < 10
    assert "wrong PASS" in rest


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    """Exit 2, one line, nothing touched."""
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run(demo(tmp_path, "--seconds", "1"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "holds other things" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
