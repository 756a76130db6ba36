"""The guest of `make test-vm`: built once into .vm/, booted once for all tests, and a report of what each one took.

These tests run only when asked for by their marker (`-m vm`), for they take a quarter of an hour.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # the kit of the tests next door
sys.path.insert(0, str(Path(__file__).parent))

from given import FOLDER, OLD, QUICK, make_given, wheel_name
from guest_line import LISTENER, SLOW, Line, lay_ready
from virtual_machine import PROGRAM, VirtualMachine

REPORT = FOLDER / "report.txt"


def pytest_configure(config):
    config.addinivalue_line("markers", "vm: boots a guest under QEMU; run by make test-vm")


def pytest_collection_modifyitems(config, items):
    """Deselected unless `-m` speaks of them."""
    if "vm" not in config.option.markexpr:
        asked = [item for item in items if item.get_closest_marker("vm") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in asked])
        items[:] = asked


class Report:
    """What was checked, how it ended, how long it took, and what was measured meanwhile."""

    def __init__(self):
        self.facts = []
        self.checks = []

    def fact(self, name, value):
        """A figure that the report gives: a boot time, a score."""
        self.facts.append((name, value))

    def text(self):
        lines = [f"{ended:7} {seconds:6.1f} s  {what}" for what, ended, seconds in self.checks]
        return "\n".join([*lines, "", *(f"{name}: {value}" for name, value in self.facts)])


_report = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def report(pytestconfig):
    return pytestconfig.stash.setdefault(_report, Report())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if item.get_closest_marker("vm") and (call.when == "call" or not report.passed):
        what = re.sub(r"^test_", "", item.name).replace("_", " ")
        checks = item.config.stash.setdefault(_report, Report()).checks
        checks.append((what, report.outcome, call.duration))
    return report


def pytest_terminal_summary(terminalreporter, config):
    report = config.stash.get(_report, None)
    if report is not None and report.checks:
        FOLDER.mkdir(exist_ok=True)
        REPORT.write_text(report.text() + "\n")
        terminalreporter.section(f"guest ({REPORT})")
        terminalreporter.write_line(report.text())


@pytest.fixture(scope="session")
def machine(report):
    began = time.monotonic()
    if os.geteuid() != 0:
        not_run("it needs root, as the building of a Debian system does")
    if shutil.which(PROGRAM) is None:
        not_run("QEMU is not installed: apt-get install qemu-system-x86")
    build = ["sh", Path(__file__).parent / "build.sh", FOLDER / "guest"]
    built = subprocess.run(build, capture_output=True, text=True, timeout=1800)
    if built.returncode != 0:
        not_run(built.stderr.strip())
    make_given(FOLDER / "given")
    report.fact("guest and packages made", f"{time.monotonic() - began:.0f} s")
    shutil.rmtree(FOLDER / "run", ignore_errors=True)
    began = time.monotonic()
    with VirtualMachine(FOLDER / "guest", FOLDER / "given", FOLDER / "run") as machine:
        report.fact("accelerator", machine.accelerator)
        report.fact("boot, until commands run", f"{time.monotonic() - began:.0f} s")
        settled = "systemctl is-system-running --wait >/dev/null || true; mountpoint -q /given || mount /given"
        about = machine.do(f"{settled}; uname -r; python3 -V", timeout=900)
        report.fact("guest", " ".join(about.split()))
        yield machine


def not_run(why):
    """One line, and neither a pass nor twenty skipped tests."""
    pytest.exit(f"test-vm was not run: {why}", returncode=1)


@pytest.fixture(scope="session")
def line(machine, report):
    """The line, installed and judging. The order of the tests is that of a line's life; each leaves it running."""
    line = Line(machine)
    machine.write("/etc/systemd/system/inspectd@.service.d/slow.conf", SLOW)
    machine.write("/etc/systemd/system/heard.service", LISTENER)
    began = time.monotonic()
    machine.do("mkdir -p /opt/inspectd/releases")
    if QUICK:
        lay_ready(machine, FOLDER / "given", wheel_name(OLD))
    install = f"sh /given/deploy/install.sh --wheels /given/wheels --wheel /given/wheels/{wheel_name(OLD)}"
    line.first_answer = machine.do(install, timeout=1800)
    report.fact(
        "installed, packages and all" if not QUICK else "installed, laid ready", f"{time.monotonic() - began:.0f} s"
    )
    line.place()
    machine.do("cp -r /given/bundle /etc/inspectd/; systemctl enable -q --now heard")
    machine.do(install, timeout=1200)
    report.fact("from the start to READY", f"{line.seconds_to_ready():.1f} s")
    return line
