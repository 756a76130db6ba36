"""The line in the guest: one inspectd with one camera, and somebody who listens to all it says."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from virtual_machine import VirtualMachine

WAIT_S = 600.0
"""For what comes within seconds on a machine of flesh; an emulated one on a busy host takes its time."""
UNIT = "inspectd@line1"
CAMERA = "/dev/v4l/by-path/platform-vivid.0-video-index0"
IDENTITY = "vivid:vivid:platform:vivid-000"
RED, GREEN = 7, 8  # of the camera's test_pattern
CONFIG = f"""
[model]
bundle = "bundle"
[[cameras]]
name = "top"
source = "usb:{CAMERA}"
identity = "{IDENTITY}"
size = [320, 180]
fps = 2
# Every connect makes the picture red, which is a scratch; the counter in the corner moves as a sensor's noise does. The
# driver's default is to stamp a frame with its end, which lies ahead of its arrival, and is not believed.
controls = {{ test_pattern = {RED}, osd_text_mode = 1, timestamp_source = 1 }}
# An emulated machine is no real-time one.
max_age_ms = 5000
rois = [{{ name = "part", box = [60, 0, 200, 180] }}]
[journal]
path = "/var/lib/inspectd/line1/journal.db"
"""
HEARD = "/var/log/heard.jsonl"
LISTENER = f"""
[Unit]
Description=Listens to the line, over restarts of the daemon and of the machine
[Service]
ExecStart=/bin/sh -c 'exec /opt/inspectd/current/bin/inspectd tail --json --topic verdict/ --topic status/ >>{HEARD}'
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
SLOW = """
[Unit]
# Where packages of a release that was laid ready are.
RequiresMountsFor=/given
[Service]
# An emulated processor takes a minute to import what a real one does in a second.
TimeoutStartSec=600
"""


class Line:
    """Commands to the line's unit and camera, and what the listener heard."""

    def __init__(self, machine: VirtualMachine):
        self.machine = machine
        self.green: tuple[int, int] | None = None
        """From where to where, of what was heard, the picture may have been green."""

    # -- the unit -----------------------------------------------------------------------------------------------

    def show(self, name: str, unit: str = UNIT) -> str:
        return self.machine.do(f"systemctl show --property {name} --value {unit}")

    def pid(self) -> int:
        return int(self.show("MainPID"))

    def seconds_to_ready(self) -> float:
        """From the start of its process to READY=1, by systemd's own clock."""
        began, ready = (
            int(self.show(name)) for name in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
        )
        return (ready - began) / 1e6

    def journal(self, *filters: str) -> list[dict]:
        """Its lines, as `journalctl -o json` has them."""
        command = ["journalctl", "--unit", UNIT, "--output", "json", "--no-pager", *filters]
        return [json.loads(line) for line in self.machine.run(*command, timeout=120).stdout.splitlines()]

    def events(self, event: str, *filters: str) -> list[dict]:
        return self.journal(f"INSPECTD_EVENT={event}", *filters)

    # -- the camera ---------------------------------------------------------------------------------------------

    def set(self, control: str, value: int = 1, device: str = CAMERA) -> None:
        """A control of the test camera, by v4l2-ctl's name of it."""
        self.machine.do(f"v4l2-ctl --device {device} --set-ctrl {control}={value}")

    # -- what was heard -----------------------------------------------------------------------------------------

    def mark(self) -> int:
        """Where what is heard from now on begins."""
        return int(self.machine.do(f"stat --format %s {HEARD}"))

    def since(self, mark: int, until: int | None = None) -> list[dict]:
        """Messages; without what is only being written."""
        end = "" if until is None else f"| head --bytes {until - mark}"
        heard = self.machine.do(f"tail --bytes +{mark + 1} {HEARD} {end}")
        return [json.loads(line) for line in heard.splitlines() if line.startswith("{") and line.endswith("}")]

    def after(self, mark: int, message: dict) -> int:
        """Where what was heard after that message begins."""
        heard = self.machine.do(f"tail --bytes +{mark + 1} {HEARD}").encode()
        end = heard.find(b"\n", heard.index(message["published_at"].encode()))
        return mark + (end if end >= 0 else len(heard)) + 1

    def wait_for(self, mark: int, wanted: Callable[[dict], bool], timeout_s: float = WAIT_S) -> dict:
        """The first message after the mark that is wanted."""
        limit = time.monotonic() + timeout_s
        while True:
            heard = self.since(mark)
            for message in heard:
                if wanted(message):
                    return message
            assert time.monotonic() < limit, f"not heard in {timeout_s} s; the last were {heard[-3:]}"
            time.sleep(0.3)

    def until(self, condition: Callable[[], object], timeout_s: float = WAIT_S, why: str = "") -> None:
        limit = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < limit, f"not within {timeout_s} s {why}"
            time.sleep(0.5)

    def attempts(self, reason: str) -> float:
        """How often the camera was tried again for that reason, by the daemon's own metrics."""
        ask = (
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9108/metrics', timeout=60).read().decode())"
        )
        metrics = self.machine.run("python3", "-c", ask, timeout=120).stdout
        found = re.search(
            rf'^inspectd_camera_reconnects_total{{camera="top",reason="{reason}"}} (\S+)$', metrics, re.MULTILINE
        )
        return float(found[1])

    def now(self) -> float:
        """The guest's wall clock."""
        return float(self.machine.do("date +%s.%N"))

    def place(self, text: str = CONFIG) -> None:
        self.machine.write("/etc/inspectd/line1.toml", text)


def is_verdict(verdict: str, reason: str | None = None) -> Callable[[dict], bool]:
    """Wanted: such a verdict, of a frame of now."""
    return lambda message: (
        message.get("verdict") == verdict
        and not message["replayed"]
        and (reason is None or message["reason"] == reason)
    )


def is_fault(reason: str) -> Callable[[dict], bool]:
    """Wanted: the camera's status says so."""
    return lambda message: message.get("state") == "fault" and message["reason"] == reason and not message["replayed"]


def lay_ready(machine: VirtualMachine, given: Path, wheel: str) -> None:
    """Put a release that `install.sh --root` made on the host where the guest's install.sh would build it.

    Its packages stay on the host; its programs, which name each other in full, are of the guest.
    """
    version = wheel.split("-")[1]
    built = given / (given / f"release-{version}").readlink()
    machine.do(f"""
        built=/given/root/opt/inspectd/releases/{built.name}
        name={version}-$({{ cat /given/wheels/{wheel} && python3 -VV; }} | sha256sum | cut -c 1-8)
        place=/opt/inspectd/releases/$name
        mkdir -p $place
        cp -r $built/bin $built/pyvenv.cfg $place/
        for part in lib share; do ln -s $built/$part $place/$part; done
        grep -lI {built.name} $place/bin/* $place/pyvenv.cfg | xargs sed -i s/{built.name}/$name/g
        touch $place/.complete
    """)
