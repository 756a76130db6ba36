"""One daemon from its start to its end: everybody around it at work, and what is seen of it written down."""

import threading
import time
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from drill import Drill
from guarded import guarded
from plant_site import BELTS, LineDaemon, Site, Street
from records import Records
from sampler import Metrics, Yardstick, folder_sample, process_sample
from small_disk import SmallDisk
from torment import Line
from visitors import Triggerer, Visitors
from watcher import Watcher

EVERY_S = 1.0
THOROUGH_EVERY = 5
SETTLE_S = 5.0
READY_S = 60.0
WITHOUT_SCRAPE_S = 2.0


@dataclass(frozen=True)
class Options:
    folder: Path
    length_s: float
    seed: int
    load: float
    belt_fps: int | None
    only: str


class Session:
    """One daemon from its start to its end."""

    def __init__(self, options: Options, site: Site, disk: SmallDisk | None, records: Records) -> None:
        self._options = options
        self._site = site
        self._disk = disk
        self._records = records
        self._yardstick = Yardstick()

    def run(self, planned: list, stop: threading.Event) -> None:
        street = Street(self._site, self._options.seed)
        daemon = None
        try:
            daemon = LineDaemon(self._site.write_config(street.link.port), self._options.folder / "daemon.log")
            self._at_work(daemon, street, planned, stop)
        finally:
            if daemon is not None:
                daemon.stop()
            street.close()

    def _at_work(self, daemon: LineDaemon, street: Street, planned: list, stop: threading.Event) -> None:
        records, seed = self._records, self._options.seed
        watcher = Watcher(daemon.endpoint, self._site.scenes, BELTS, records.broken).start()
        self._wait_ready(daemon)
        triggerer = Triggerer(daemon.control, watcher, seed, records.broken).start()
        visitors = Visitors(daemon.endpoint, daemon.control, seed, records.broken).start()
        time.sleep(SETTLE_S)
        watcher.take()
        began = time.monotonic()
        records.begin(daemon.pid)
        drill = Drill(Line(self._site, street, daemon, self._disk), watcher, began, records.fault, records.broken)
        ended = threading.Event()  # the daemon, or the time
        sampling = guarded("sampler", lambda: self._sample(daemon, watcher, drill, began, ended, stop), records.broken)
        sampling.start()
        drill.run(planned, self._options.length_s, stop)
        ended.set()
        sampling.join(10)
        visitors.stop()
        triggerer.stop()
        by_itself = not daemon.alive
        code, took_s = daemon.stop()
        self._wait_complete(watcher)
        watcher.stop()
        triggerer.settle()
        records.end(
            {
                "length_s": time.monotonic() - began,
                "exit_code": code,
                "by_itself": by_itself,
                "stop_s": took_s,
                "complete": watcher.complete(),
                "wrong_pass": watcher.wrong_pass,
                "wrong_fail": watcher.wrong_fail,
                "stale_pass": watcher.stale_pass,
                "latest_pass_s": round(watcher.latest_pass_s, 3),
                "gaps": watcher.gaps,
                "repeats": watcher.repeats,
                "judged": {f"{'right' if right else 'wrong'} {kind}": n for (right, kind), n in watcher.judged.items()},
                "messages": sum(watcher.seqs.values()),
                "triggers": {
                    "accepted": triggerer.accepted,
                    "refused": triggerer.refused,
                    "wrong": triggerer.unanswered,
                },
                "visitors": visitors.came,
                "replayed_pages": visitors.pages,
                "answers_without_trigger": len(watcher.answers),
                "journal": self._verified(),
            }
        )

    def _wait_ready(self, daemon: LineDaemon) -> None:
        deadline = time.monotonic() + READY_S
        while Metrics(daemon.scrape()).total("inspectd_ready") != 1:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the daemon was not ready after {READY_S:.0f} s; see its log")
            time.sleep(0.2)

    def _wait_complete(self, watcher: Watcher) -> None:
        """What was sent last is still on its way."""
        deadline = time.monotonic() + 10
        while not watcher.complete() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _verified(self) -> str:
        from inspectd.verdict.journal.verify import verify

        found = verify(self._site.folder / "journal.db")
        for fault in found.faults:
            self._records.broken("the journal's chain is whole", str(fault))
        return str(found)

    def _sample(
        self,
        daemon: LineDaemon,
        watcher: Watcher,
        drill: Drill,
        began: float,
        ended: threading.Event,
        stop: threading.Event,
    ) -> None:
        """A line every second, until the soak ends; a daemon that ends by itself ends the soak."""
        number = 0
        while not ended.wait(max(0.0, began + number * EVERY_S - time.monotonic())):
            if not daemon.alive:
                self._records.broken("the daemon runs on", f"it ended with {daemon.process.poll()}")
                stop.set()
                return
            self._records.sample(self._one_sample(daemon, watcher, drill, began, number))
            number = max(number + 1, int((time.monotonic() - began) / EVERY_S))

    def _one_sample(
        self, daemon: LineDaemon, watcher: Watcher, drill: Drill, began: float, number: int
    ) -> dict[str, object]:
        sample: dict[str, object] = {"t": round(time.monotonic() - began, 3), "fault": drill.now_on}
        sample |= process_sample(daemon.pid, thorough=number % THOROUGH_EVERY == 0)
        if number % THOROUGH_EVERY == 0:
            sample |= folder_sample(self._site.folder)
        try:
            metrics = Metrics(daemon.scrape(WITHOUT_SCRAPE_S))
        except (OSError, HTTPException):
            sample["metrics"] = None  # stopped, or a fault at HTTP
        else:
            sample["metrics"] = metrics.sample()
            for account in metrics.unbalanced():
                self._records.broken("every frame is accounted for", account)
        tally = watcher.take()
        self._records.latencies(tally.belt_at, tally.belt_ms, began)
        sample["belt"] = {"n": len(tally.belt_ms)}
        sample["verdicts"] = {"/".join(key): count for key, count in tally.verdicts.items()}
        sample["longest_beat_s"] = round(tally.longest_beat_s, 3)
        sample["yardstick_ms"] = round(self._yardstick.measure_ms(), 3)
        return sample


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
