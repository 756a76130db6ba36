"""The line under test: cameras behind their links, the configuration, and the daemon as a process of its own."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from flaky_link import FlakyLink
from rtsp_server import RtspServer
from works import Scene, golden_pictures

BELT = (640, 480)
SMALL = (320, 240)
STREET = Scene(slot_s=0.2, slots=40, salt=3, margin_s=0.01)
"""What the RTSP camera shows, at every rate that divides 0.2 s into whole frames."""
GATE = Scene(slot_s=0.2, slots=40, salt=5, margin_s=0.01)
GATE_FPS = 25
STREET_FPS = 25
BELTS = ("belt1", "belt2")
PASSWORDS = ("first secret", "another secret")
STARTED_S = 90.0


def lasting_port() -> int:
    """A free port that the system gives to no outgoing connection: it stays free while its owner is down."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(max(1024, lowest - 10_000), lowest), 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no free port")


def belt_scene(number: int, fps: float) -> Scene:
    """A kind for every single frame: a verdict that belongs to its neighbour shows."""
    return Scene(slot_s=1 / fps, slots=round(24 * fps), salt=number, margin_s=0.25 / fps)


@dataclass(frozen=True)
class Limits:
    """What journal and evidence may take, and so what they level off at."""

    journal_rows: int
    journal_mb: int
    evidence_mb: int


CONFIG = """
[model]
bundle = "bundle"
[publish]
bind = "tcp://127.0.0.1:*"
send_queue = 20000
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[log]
format = "json"
[journal]
path = "journal.db"
max_rows = {limits.journal_rows}
max_mb = {limits.journal_mb}
[evidence]
dir = "evidence"
max_mb = {limits.evidence_mb}
max_per_s = {evidence_per_s}
[challenge]
pictures = [
    {{ file = "good.png", camera = "belt1", roi = "part", expect = "pass", label = "good" }},
    {{ file = "scratch.png", camera = "belt1", roi = "part", expect = "fail" }},
]
[recipes.lid]
bundle = "bundle-lid"
rois = [
    {{ camera = "belt1", name = "part", box = [100, 40, 400, 400] }},
    {{ camera = "belt2", name = "lid", box = [16, 16, 448, 448] }},
]
challenge = [{{ file = "stain.png", camera = "belt2", roi = "lid", expect = "fail", label = "stain" }}]
[recipes.wrong]
challenge = [{{ file = "scratch.png", camera = "belt1", roi = "part", expect = "pass" }}]
"""
_CAMERA = """
[[cameras]]
name = "{name}"
source = "{source}"
{keys}
[[cameras.rois]]
name = "part"
box = {box}
"""


@dataclass
class Site:
    """Files, cameras and links of one soak; the daemon comes and goes with `daemon`."""

    folder: Path
    limits: Limits
    belt_fps: int = 30
    pace: str = ""
    scenes: dict[str, Scene] = field(default_factory=dict)
    clips: dict[str, Path] = field(default_factory=dict)

    def prepare(self) -> None:
        """Bundles, clips, golden pictures and the small disk for the evidence. Takes about half a minute."""
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, Path(__file__).with_name("works.py"), self.folder], check=True)
        golden_pictures(self.folder, BELT)
        write = STREET.write
        self.clips = {
            "usual": write(self.folder / "usual.mp4", STREET_FPS, SMALL),
            "other_size": write(self.folder / "other_size.mp4", STREET_FPS, (480, 368)),
            "other_rate": write(self.folder / "other_rate.mp4", 10, SMALL),
            "other_codec": write(self.folder / "other_codec.mp4", STREET_FPS, SMALL, codec="libx265"),
            "gate": GATE.write(self.folder / "gate.mp4", GATE_FPS, SMALL),
        }
        self.write_password(PASSWORDS[0])

    def write_password(self, password: str) -> None:
        (self.folder / "street.credentials").write_text(f"viewer:{password}\n")

    def server(self, clip: str, password: str, port: int) -> RtspServer:
        return RtspServer(self.clips[clip], port=port, auth=("viewer", password))

    def set_pace(self, fps: int | None) -> None:
        """Write the belts' clips and the configuration: so many frames a second each, or as fast as they are taken."""
        self.belt_fps = fps or self.belt_fps
        self.scenes = {"street": STREET, "gate": GATE}
        for number, belt in enumerate(BELTS):
            scene = self.scenes[belt] = belt_scene(number, self.belt_fps)
            scene.write(self.folder / f"{belt}.mp4", self.belt_fps, BELT, seed=number)
        self.pace = "&realtime=1" if fps else ""

    def write_config(self, street_port: int, *, broken: bool = False) -> Path:
        """The configuration file; `broken`: as somebody who misspelt a key would leave it."""
        text = CONFIG.format(limits=self.limits, evidence_per_s=4)
        for belt in BELTS:
            text += _CAMERA.format(
                name=belt, source=f"file:{belt}.mp4?loop=1{self.pace}", keys="", box=[0, 0, BELT[0], BELT[1]]
            )
        text += _CAMERA.format(
            name="street",
            source=f"rtsp://127.0.0.1:{street_port}/camera",
            keys='credentials_file = "street.credentials"',
            box=[40, 0, 240, 240],
        )
        text += _CAMERA.format(
            name="gate", source="file:gate.mp4?loop=1&realtime=1", keys='trigger = "command"', box=[40, 0, 240, 240]
        )
        path = self.folder / "line.toml"
        fresh = self.folder / "line.toml.new"
        fresh.write_text(text + ("\nmisspelt = 1\n" if broken else ""))
        fresh.replace(path)
        return path


class Street:
    """The RTSP camera that everything happens to: server, link and password, which can be changed while it runs."""

    def __init__(self, site: Site, seed: int) -> None:
        """`seed` is of the packets that are lost."""
        self._site = site
        self.camera = site.server("usual", PASSWORDS[0], lasting_port()).start()
        self._up = True
        self.link = FlakyLink(self.camera.port, seed, port=lasting_port())

    def kill(self) -> None:
        """Its power is gone."""
        self.camera.kill()
        self._up = False

    def start(self) -> None:
        """Its power is back; nothing to do for one that runs."""
        if not self._up:
            self.camera.start()
            self._up = True

    def replace(self, clip: str = "usual", password: str = PASSWORDS[0]) -> None:
        """Another camera in its place, at the same address."""
        self.kill()
        self.camera = self._site.server(clip, password, self.camera.port)
        self.start()

    def close(self) -> None:
        self.link.close()
        self.kill()


class LineDaemon:
    """`inspectd run` with its log in a file; its end is told by `stop`."""

    def __init__(self, config: Path, log: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("INSPECTD__", "NOTIFY_", "WATCHDOG_"))}
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inspectd", "run", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                process_group=0,  # a Ctrl-C at us is not one at the daemon
            )
        started = self._wait_started()
        self.endpoint, self.control, self.url = started["verdicts"], started["control"], started["http"].rstrip("/")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def _wait_started(self) -> dict:
        deadline = time.monotonic() + STARTED_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            for line in self.log_lines():
                if line.get("event") == "started":
                    return line
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"the daemon did not start; see {self._log}")

    def log_lines(self) -> list[dict]:
        """What it has logged so far; a line that is no JSON (a traceback of the interpreter) as {"event": "text"}."""
        lines = []
        for text in self._log.read_text(errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                lines.append({"event": "text", "level": "error", "text": text})
        return lines

    def scrape(self, timeout_s: float = 5.0) -> str:
        with urllib.request.urlopen(self.url + "/metrics", timeout=timeout_s) as answer:
            return answer.read().decode()

    def stop(self) -> tuple[int | None, float]:
        """SIGTERM: its exit code (None: it had to be killed) and how long it took."""
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            if self.process.poll() is None:
                self.process.terminate()
        try:
            code: int | None = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        return code, time.monotonic() - began
