"""What Prometheus sees: one registry of its own, every series there from the first scrape.

The frame counters are not kept here. They are read from the ledger, all in one snapshot, so that in
every single scrape, for each camera and ROI:

    inspectd_frames_captured_total + inspectd_verdicts_without_frame_total
        == sum(inspectd_verdicts_total) + sum(inspectd_frames_dropped_total) + inspectd_frames_in_flight

Label values are bounded: names from the configuration, reasons and labels from fixed lists. A frame
or part id is never one.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from inspectd import __version__
from inspectd.errors import CaptureReason
from inspectd.observe.buckets import SECONDS_BUCKETS
from inspectd.observe.ledger import Ledger
from inspectd.observe.line_metrics import LineMetrics

log = structlog.get_logger(__name__)

Stage = Literal["decode", "crop", "queue", "engine", "publish"]
ModelLabel = Literal["architecture", "engine", "device", "precision"]

BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Crops per batch, up to the largest `max_batch_size`."""


class Picture(Protocol):
    """How a region looks: the part of its quality that is shown."""

    @property
    def level(self) -> float: ...
    @property
    def sharpness(self) -> float: ...


class Metrics(LineMetrics):
    """Every metric of the daemon. All methods may be called from any thread.

    `cameras` are the configured names, `verdicts` all (verdict, reason) pairs that can be published and
    `drops` all reasons to drop a frame. They are exported as zero until they happen, because `rate()`
    cannot see a counter's first step out of nothing; what happens without being listed is exported too.
    """

    def __init__(
        self,
        ledger: Ledger,
        cameras: Sequence[str],
        *,
        verdicts: Iterable[tuple[str, str]] = (),
        drops: Iterable[str] = (),
    ) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self._stages = Histogram(
            "inspectd_stage_seconds",
            "Time that one stage took: decode, crop and publish per frame or message, queue per crop, engine per batch",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._capture_to_verdict = Histogram(
            "inspectd_capture_to_verdict_seconds",
            "Time from the arrival of a frame's data to its published verdict",
            ["camera"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        batches = Histogram("inspectd_batch_size", "Crops per inferred batch", buckets=BATCH_BUCKETS, registry=registry)
        self._camera_up = Gauge(
            "inspectd_camera_up",
            "1 while the camera delivers frames that can be judged, else 0",
            ["camera"],
            registry=registry,
        )
        self._reconnects = Counter(
            "inspectd_camera_reconnects_total",
            "Times a camera was lost and opened again, by why it was lost",
            ["camera", "reason"],
            registry=registry,
        )
        subscribers = Gauge("inspectd_subscribers", "Open connections to the verdict stream", registry=registry)
        ready = Gauge("inspectd_ready", "1 while /readyz says yes, else 0", registry=registry)
        LineMetrics.__init__(self, registry, cameras)
        for stage in get_args(Stage):
            self._stages.labels(stage)
        for camera in cameras:
            self._capture_to_verdict.labels(camera)
            self._camera_up.labels(camera)
            for reason in get_args(CaptureReason):
                self._reconnects.labels(camera, reason)

        self.batch: Callable[[float], None] = batches.observe
        """Count one inferred batch of that many crops."""
        self.set_subscribers: Callable[[float], None] = subscribers.set
        self._ready = ready

        self._accounts = _AccountCollector(ledger, verdicts, drops)
        self._frame_ages = _FrameAgeCollector(cameras)
        self._images = _ImageCollector()
        self._infos = _InfoCollector()
        for collector in (self._accounts, self._frame_ages, self._images, self._infos):
            registry.register(collector)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

    def stage(self, name: Stage) -> Callable[[float], None]:
        """What to call with the seconds that stage took. Bind it once; a call costs about a microsecond."""
        return self._stages.labels(name).observe

    def capture_to_verdict(self, camera: str) -> Callable[[float], None]:
        """What to call with the seconds from a frame's arrival to its published verdict. Bind it once."""
        return self._capture_to_verdict.labels(camera).observe

    def frame_arrived(self, camera: str, at_monotonic: float) -> None:
        """A frame's data arrived at that `time.monotonic()`. One store; the age is computed at the scrape."""
        self._frame_ages.last[camera] = at_monotonic

    def camera_up(self, camera: str, up: bool) -> None:
        self._camera_up.labels(camera).set(up)

    def image(self, camera: str, seen: Mapping[str, Picture]) -> None:
        """How the newest frame's ROIs look; one store. Empty where nobody measures it."""
        self._images.newest[camera] = seen

    def reconnect(self, camera: str, reason: CaptureReason) -> None:
        self._reconnects.labels(camera, reason).inc()

    def ask_ready(self, probe: Callable[[], bool]) -> None:
        """Each scrape asks, in its own thread: a main loop that hangs tells nothing. A probe that raises is a no."""

        def asked() -> float:
            try:
                return probe()
            except Exception:
                log.exception("ready_probe_failed")
                return False

        self._ready.set_function(asked)

    def expect_defects(self, camera: str, roi: str, labels: Iterable[str]) -> None:
        """The defect labels of the model that judges this region: exported as zero until they happen."""
        self._accounts.expect_defects(camera, roi, labels)

    def show_models(self, models: Mapping[str, Mapping[ModelLabel, str]]) -> None:
        """These bundles (by hash prefix) are served, and this way; others are no longer."""
        self._infos.models = {
            bundle: (bundle, *(labels[name] for name in get_args(ModelLabel))) for bundle, labels in models.items()
        }

    def show_recipe(self, recipe: str | None, config: str) -> None:
        """What is in force."""
        self._infos.in_force = {"recipe": recipe or "", "config": config}

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics as bytes, with their content type: OpenMetrics or text, as an Accept header asks."""
        accept = " ".join(accept.split())  # the answer repeats parts of it: no folded lines
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type


class _AccountCollector(Collector):
    """The ledger as metrics: one snapshot per scrape."""

    def __init__(
        self,
        ledger: Ledger,
        verdicts: Iterable[tuple[str, str]],
        drops: Iterable[str],
    ) -> None:
        self._ledger = ledger
        self._verdicts = dict.fromkeys(verdicts, 0)
        self._drops = dict.fromkeys(drops, 0)
        self._defects: dict[tuple[str, str], dict[str, int]] = {}  # replaced whole, never changed

    def expect_defects(self, camera: str, roi: str, labels: Iterable[str]) -> None:
        self._defects = {**self._defects, (camera, roi): dict.fromkeys(labels, 0)}

    def collect(self) -> Iterator[Metric]:
        captured = CounterMetricFamily("inspectd_frames_captured", "Frames that a camera delivered", labels=["camera"])
        verdicts = CounterMetricFamily(
            "inspectd_verdicts",
            "Published verdicts; the reason is empty where the verdict has none",
            labels=["camera", "roi", "verdict", "reason"],
        )
        dropped = CounterMetricFamily(
            "inspectd_frames_dropped",
            "Frames left out for a region of interest without a verdict",
            labels=["camera", "roi", "reason"],
        )
        without_frame = CounterMetricFamily(
            "inspectd_verdicts_without_frame",
            "Verdicts about no frame of their own: a trigger without a frame in time, or one more on the same frame",
            labels=["camera", "roi"],
        )
        in_flight = GaugeMetricFamily(
            "inspectd_frames_in_flight",
            "Captured frames whose verdict for a region of interest is still to come",
            labels=["camera", "roi"],
        )
        defects = CounterMetricFamily(
            "inspectd_defects", "Verdicts fail, by the label that failed", labels=["camera", "roi", "label"]
        )
        cameras: dict[str, int] = {}
        for account in self._ledger.snapshot():
            where = [account.camera, account.roi]
            cameras[account.camera] = account.captured
            for (verdict, reason), count in (self._verdicts | account.verdicts).items():
                verdicts.add_metric([*where, verdict, reason], count)
            for reason, count in (self._drops | account.dropped).items():
                dropped.add_metric([*where, reason], count)
            for label, count in (self._defects.get((account.camera, account.roi), {}) | account.defects).items():
                defects.add_metric([*where, label], count)
            in_flight.add_metric(where, account.in_flight)
            without_frame.add_metric(where, account.without_frame)
        for camera, count in cameras.items():
            captured.add_metric([camera], count)
        yield from (captured, verdicts, dropped, without_frame, in_flight, defects)


class _FrameAgeCollector(Collector):
    """How long ago each camera's last frame arrived; before the first, how long it has been waited for."""

    def __init__(self, cameras: Sequence[str]) -> None:
        # Written by the capture threads, read by a scrape: each entry is one atomic store of a float.
        self.last = dict.fromkeys(cameras, time.monotonic())

    def collect(self) -> Iterator[Metric]:
        ages = GaugeMetricFamily(
            "inspectd_last_frame_age_seconds",
            "Time since the newest frame of a camera arrived, or since the start before the first one",
            labels=["camera"],
        )
        now = time.monotonic()
        for camera, at in tuple(self.last.items()):
            ages.add_metric([camera], max(0.0, now - at))
        yield ages


class _ImageCollector(Collector):
    """How each ROI of the newest frame looks."""

    def __init__(self) -> None:
        # By camera; each entry is replaced whole, one atomic store.
        self.newest: dict[str, Mapping[str, Picture]] = {}

    def collect(self) -> Iterator[Metric]:
        levels = GaugeMetricFamily(
            "inspectd_image_level",
            "Mean brightness of a region in the newest frame, from 0 (black) to 1 (white)",
            labels=["camera", "roi"],
        )
        sharpness = GaugeMetricFamily(
            "inspectd_image_sharpness",
            "Sharpness of a region in the newest frame, from 0 (only slopes) to 1",
            labels=["camera", "roi"],
        )
        for camera, seen in tuple(self.newest.items()):
            for roi, picture in seen.items():
                levels.add_metric([camera, roi], picture.level)
                sharpness.add_metric([camera, roi], picture.sharpness)
        yield from (levels, sharpness)


class _InfoCollector(Collector):
    """What runs: the program and the models it serves."""

    def __init__(self) -> None:
        # Replaced whole, never changed.
        self.models: dict[str, tuple[str, ...]] = {}  # bundle -> label values
        self.in_force: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "inspectd_build",
            "The running program",
            value={"version": __version__, "python": platform.python_version()},
        )
        if self.in_force:
            yield InfoMetricFamily("inspectd_config", "The recipe and configuration in force", value=self.in_force)
        names = ["bundle", *get_args(ModelLabel)]
        models = InfoMetricFamily("inspectd_model", "A served model bundle, by the prefix of its hash", labels=names)
        for values in self.models.values():
            models.add_metric(values, {})
        yield models
