"""Months in hours: the real daemon at full rate for as long as you give it, and everything that happens to one.

    python tests/soak/run.py --hours 2 --seed 1 -o FOLDER [--cpus 0]
    python tests/soak/run.py --report-only FOLDER

A daemon with two cameras that load the machine to `--load`, an RTSP camera behind a bad network, and a triggered one;
a seeded schedule of faults; a subscriber that holds each verdict against the truth of its picture. FOLDER/report.md
says what came of it. Exit codes: 0 every promise held, 1 one line for each that did not, 2 it could not be run.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))  # the kit of the tests next door

from line_torments import EvidenceFull, EvidenceReadOnly
from plant_site import BELTS, STREET_FPS, Limits, LineDaemon, Site, Street
from records import Records
from report import write_report
from schedule import plan
from session import EVERY_S, SETTLE_S, Options, Session, tell
from small_disk import SmallDisk
from torments import ALL
from watcher import Watcher

EVIDENCE_MB = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="0.02 is a smoke test")
    parser.add_argument("--seed", type=int, default=1, help="of all moments and kinds of faults")
    parser.add_argument("-o", "--output", type=Path, help="folder for samples and report; must be new or empty")
    parser.add_argument("--cpus", help="run on these processors only, as in 0,1")
    parser.add_argument("--load", type=float, default=0.85, help="of what the machine can do, measured before")
    parser.add_argument("--belt-fps", type=int, help="frames a second of each of two cameras, instead of measuring")
    parser.add_argument("--only", default="", metavar="WORDS", help="only faults whose names hold these words")
    parser.add_argument("--report-only", type=Path, metavar="FOLDER", help="write the report of what is there so far")
    given = parser.parse_args()
    if given.report_only is not None:
        return say(write_report(given.report_only))
    if given.output is None or (given.output.exists() and any(given.output.iterdir())):
        parser.error("-o needs a folder that is new or empty")
    if given.cpus is not None:
        os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
    options = Options(
        given.output.resolve(), given.hours * 3600, given.seed, given.load, given.belt_fps, given.only.lower()
    )
    if not any(options.only in torment.kind.name.lower() for torment in ALL):
        parser.error(f"--only: no fault is called {given.only!r}; there are: {', '.join(t.kind.name for t in ALL)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        soak(options, stop)
    except (RuntimeError, OSError, subprocess.SubprocessError) as err:
        print(f"soak: could not be run: {err}", file=sys.stderr)
        return 2
    return say(write_report(options.folder))


def say(broken: list[str]) -> int:
    """One line for each broken promise."""
    for line in broken:
        print(line)
    return 1 if broken else 0


def soak(options: Options, stop: threading.Event) -> None:
    """Prepare, measure the rate, run, stop; what came of it lies in the folder."""
    records = Records(options.folder)
    limits = Limits(
        journal_rows=max(2000, min(50_000, round(4 * options.length_s))), journal_mb=64, evidence_mb=EVIDENCE_MB
    )
    site = Site(options.folder / "site", limits)
    tell("preparing bundles and clips")
    site.prepare()
    disk = SmallDisk(site.folder / "evidence", 2 * EVIDENCE_MB)
    small = disk.mount()
    try:
        fps = options.belt_fps or calibrated(site, options)
        site.set_pace(fps)
        possible = [torment for torment in ALL if small or torment not in (EvidenceFull, EvidenceReadOnly)]
        kinds = [torment.kind for torment in possible if options.only in torment.kind.name.lower()]
        planned = plan(options.seed, options.length_s, kinds)
        records.write_meta(
            {
                "length_s": options.length_s,
                "seed": options.seed,
                "load": None if options.belt_fps else options.load,
                "belt_fps": fps,
                "cpus": sorted(os.sched_getaffinity(0)),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
                "limits": asdict(limits),
                "small_disk": small,
                "planned": [asdict(one) for one in planned],
            }
        )
        tell(f"{len(planned)} faults in {options.length_s / 3600:.2f} h, two belts at {fps} fps each")
        Session(options, site, disk if small else None, records).run(planned, stop)
    finally:
        disk.close()


def calibrated(site: Site, options: Options) -> int:
    """Frames a second of each belt that load this machine to `options.load`, all else as it will be."""
    seconds = min(30.0, max(6.0, 0.02 * options.length_s))
    site.set_pace(None)
    street = Street(site, options.seed)
    daemon = None
    try:
        daemon = LineDaemon(site.write_config(street.link.port), options.folder / "calibration.log")
        watcher = Watcher(daemon.endpoint, site.scenes, BELTS, lambda *_: None).start()
        time.sleep(SETTLE_S)
        watcher.take()
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            daemon.scrape()
            time.sleep(EVERY_S)
        belts = len(watcher.take().belt_ms) / (time.monotonic() - began)
        watcher.stop()
    finally:
        if daemon is not None:
            daemon.stop()
        street.close()
    each = int((options.load * (belts + STREET_FPS) - STREET_FPS) / len(BELTS))
    tell(f"{belts:.0f} frames/s as fast as they are taken, beside {STREET_FPS} live ones")
    return max(5, each)


if __name__ == "__main__":
    sys.exit(main())
