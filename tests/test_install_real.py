"""The real wheel with its locked packages, installed by deploy/install.sh under a real systemd, and judging parts."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from colour_bundle import colour_bundle
from pocket_machine import PYTHON, NotPossibleError, PocketMachine

CHECKOUT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "config.example.toml", "inspectd", "systemd", "deploy")
CONFIG = """
[model]
bundle = "bundle"
[[cameras]]
name = "top"
source = "conveyor:?width=320&height=240&fps=20"
rois = [{ name = "part", box = [40, 20, 200, 200] }]
[journal]
path = "/var/lib/inspectd/line1/journal.db"
"""

pytestmark = pytest.mark.soak


def build(pip, folder, version):
    """A wheel of this source tree with another version on it."""
    source = folder / version
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, source / name)
    about = source / "inspectd" / "__init__.py"
    about.write_text(re.sub(r'"\d[^"]*"', f'"{version}"', about.read_text()))
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    return folder / f"inspectd-{version}-py3-none-any.whl"


@pytest.fixture
def pip(tmp_path):
    """The pip of Debian's Python, which is the one that a service can read and that a user has."""
    made = subprocess.run([PYTHON, "-m", "venv", tmp_path / "tools"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("needs Debian's python3-venv")

    def run(*arguments):
        command = [tmp_path / "tools/bin/python", "-m", "pip", *arguments]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=600)

    return run


def test_the_real_release_is_installed_without_a_network_judges_and_is_upgraded_only_with_a_good_bundle(tmp_path, pip):
    """Wheel, lock, units, sandbox, engine and journal as on a line: installed, killed, refused, upgraded, back."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    old, new = build(pip, wheels, "0.1.0"), build(pip, wheels, "0.1.1")
    lock = CHECKOUT / "deploy" / "requirements.lock"
    pip("download", "--quiet", "--only-binary", ":all:", "--require-hashes", "-r", lock, "-d", wheels)
    pip("download", "--quiet", "--only-binary", ":all:", "--no-deps", "iniconfig", "-d", wheels)
    colour_bundle(tmp_path / "bundle")
    try:
        with PocketMachine(tmp_path / "machine") as machine:
            for name in ("wheels", "bundle"):
                shutil.copytree(tmp_path / name, machine.shared / name)
            judge(machine, machine.shared / "wheels" / old.name, machine.shared / "wheels" / new.name)
    except NotPossibleError as err:
        pytest.skip(f"no machine within this one: {err}")


def judge(machine, old, new):
    def install(*arguments):
        command = (CHECKOUT / "deploy" / "install.sh", "--python", PYTHON, "--wheels", old.parent)
        return machine.run(*command, *arguments, timeout=300)

    def show(name, unit="inspectd@line1"):
        return machine.systemctl("show", "--property", name, "--value", unit)

    def verdicts():
        done = machine.run(
            "/opt/inspectd/current/bin/inspectd", "tail", "--json", "--topic", "verdict/", "--count", "5"
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    # Installed; a configuration; started.
    done = install("--wheel", old, "--with", "iniconfig")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (machine.shared / "line1.toml").write_text(CONFIG)
    machine.run("cp", "-r", machine.shared / "line1.toml", machine.shared / "bundle", "/etc/inspectd/")
    done = install("--wheel", old, "--bridge", "modbus")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {message["camera"] for message in verdicts()} == {"top"}
    assert show("ActiveState", "inspectd-modbus@line1") == "active"
    exposure = machine.run("systemd-analyze", "security", "--no-pager", "--threshold=15", "inspectd@line1.service")
    assert exposure.returncode == 0, exposure.stdout

    # Compiled ahead, for nobody can write there later.
    compiled = "/opt/inspectd/current/lib/python3*/site-packages/inspectd/__pycache__/daemon.*.pyc"
    assert machine.run("sh", "-c", f"ls {compiled}").returncode == 0

    # The journal has structured lines.
    lines = machine.run("journalctl", "-u", "inspectd@line1", "-o", "json", "--no-pager").stdout.splitlines()
    events = {json.loads(json.loads(line)["MESSAGE"])["event"] for line in lines if '"MESSAGE":"{' in line}
    assert "started" in events

    # Killed: back by itself. Stopped: within 5 s, and not by force.
    first = show("MainPID")
    machine.systemctl("kill", "--signal", "KILL", "inspectd@line1")
    wait = f"until systemctl is-active -q inspectd@line1 && [ $(systemctl show -P MainPID inspectd@line1) != {first} ]"
    assert machine.run("sh", "-c", f"{wait}; do sleep 0.1; done", timeout=60).returncode == 0
    assert verdicts()
    machine.systemctl("stop", "inspectd@line1")
    assert (show("ActiveState"), show("Result")) == ("inactive", "success")
    machine.systemctl("start", "inspectd@line1")

    # An upgrade with a bad bundle keeps the old one running, undisturbed.
    process = show("MainPID")
    machine.run("sh", "-c", "echo x >>/etc/inspectd/bundle/openvino/model.bin")
    done = install("--wheel", new)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "model.bin" in done.stderr
    assert "0.1.0-" in done.stderr
    assert show("MainPID") == process
    assert verdicts()

    # With a good one it comes up, and can be taken back.
    machine.run("cp", "-r", machine.shared / "bundle", "/etc/inspectd/")
    for arguments, version in ((("--wheel", new), "0.1.1"), (("--rollback",), "0.1.0")):
        done = install(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert machine.run("/opt/inspectd/current/bin/inspectd", "--version").stdout.split()[-1] == version
        assert machine.run("/opt/inspectd/current/bin/python", "-c", "import iniconfig").returncode == 0
        assert verdicts()
    proof = machine.run("/opt/inspectd/current/bin/inspectd", "journal", "verify", "/var/lib/inspectd/line1/journal.db")
    assert proof.returncode == 0, proof.stderr
