"""What a PLC may act on at this moment: the one state that both bridges show.

Nothing here knows a socket or a clock; messages are fed in with the time, and views are taken with the time. So an
age or an expiry is exact whenever somebody looks, and no timer can be late.

A result is shown only while everything speaks for it: it came live (neither repeated nor recovered), it is the
newest of its region, it is younger than `hold_ms`, the heartbeat is younger than a second and says `ready`, the
client says that all is well, and the camera is not at fault. When one of these ends, the result is forgotten: it
never comes back, only the next one counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from inspectd.bridge import codes
from inspectd.bridge.codes import Code
from inspectd.bridge.layout import Layout, RoiLayout
from inspectd.bridge.transit import Transit, unix_s
from inspectd.verdict.schema import CameraStatus, Heartbeat, Part, State, Verdict, part_topic, verdict_topic

SILENCE_S = 1.0
"""Without a heartbeat for so long outputs are fail-safe, whatever the client says."""

Result = Verdict | Part


@dataclass(frozen=True, slots=True)
class RoiView:
    """A region at one instant. `result` is None exactly when `verdict` is the fail-safe code."""

    verdict: int
    reason: Code
    result: Result | None
    label: int  # index in the layout; 0 none
    age_ms: float | None
    count: int  # results heard of since the bridge started
    seq: int  # of the newest of them


@dataclass(frozen=True, slots=True)
class CameraView:
    state: State | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class LineView:
    safe: bool
    reason: Code  # why not
    state: State | None
    text: str | None  # the daemon's or the client's words for it
    heartbeats: int
    boot_id: str | None
    recipe: str | None
    config: str


@dataclass(slots=True)
class _Region:
    layout: RoiLayout
    result: Result | None = None
    published: float = 0.0  # Unix seconds, the daemon's clock
    why: Code = codes.WAITING  # there is no result
    count: int = 0
    seq: int = 0

    def forget(self, why: Code) -> None:
        self.result, self.why = None, why


@dataclass(slots=True)
class _Camera:
    regions: dict[str, _Region]
    state: State | None = None
    reason: str | None = None

    @property
    def barred(self) -> bool:
        return self.state in ("starting", "fault")


@dataclass(slots=True)
class LineImage:
    """See the module. One thread uses it; a view is taken in one go, so it never shows half a message."""

    layout: Layout
    hold_ms: float
    _cameras: dict[str, _Camera] = field(init=False)
    _regions: dict[str, _Region] = field(init=False)  # by the topic that drives them
    _transit: Transit = field(init=False, default_factory=Transit)
    _boot_id: str | None = field(init=False, default=None)
    _heartbeat: Heartbeat | None = field(init=False, default=None)
    _heard_at: float = field(init=False, default=-math.inf)
    _heartbeats: int = field(init=False, default=0)
    _alarm: str | None = field(init=False, default="connecting")  # the client's

    def __post_init__(self) -> None:
        self._cameras = {
            camera.name: _Camera({roi.name: _Region(roi) for roi in camera.rois}) for camera in self.layout.cameras
        }
        self._regions = {}
        for camera in self.layout.cameras:
            for roi in camera.rois:
                topic = (verdict_topic if roi.source == "verdict" else part_topic)(camera.name, roi.name)
                self._regions[topic] = self._cameras[camera.name].regions[roi.name]

    @property
    def topics(self) -> tuple[str, ...]:
        """Of every region."""
        return tuple(self._regions)

    # -- what is heard ----------------------------------------------------------------------------------

    def heartbeat(self, message: Heartbeat, now: float) -> None:
        self._boot(message.boot_id)
        self._transit.heard(unix_s(message.published_at), now)
        age = self._transit.age_s(unix_s(message.published_at), now)
        if age >= SILENCE_S:
            return  # it waited somewhere; nobody knows whether its sender still lives
        self._heartbeat, self._heard_at = message, now - age
        self._heartbeats += 1
        if message.state != "ready":
            self._forget_all()

    def status(self, message: CameraStatus) -> None:
        """A camera's state; a repeated one as well, because it holds until the next."""
        self._boot(message.boot_id)
        camera = self._cameras.get(message.camera)
        if camera is None:
            return
        camera.state, camera.reason = message.state, message.reason
        if camera.barred:
            for region in camera.regions.values():
                region.forget(codes.WAITING)

    def result(self, message: Result, now: float, *, recovered: bool) -> bool:
        """A verdict; True when it is of this line, and of what drives its region.

        Only a live one is ever shown: neither `recovered` by the client nor repeated by the daemon.
        """
        topic = (verdict_topic if isinstance(message, Verdict) else part_topic)(message.camera, message.roi)
        region = self._regions.get(topic)
        if recovered and message.boot_id != self._boot_id:
            if region is not None:
                region.count += 1  # of an earlier boot, which is over
            return region is not None
        self._boot(message.boot_id)
        if region is None or message.seq <= region.seq:
            return False
        region.seq = message.seq
        region.forget(codes.WAITING if message.replayed and not recovered else codes.LOST)
        if recovered or not message.replayed:
            region.count += 1
        if recovered or message.replayed:
            return True
        published = unix_s(message.published_at)
        self._transit.heard(published, now)
        if self.line(now).safe and not self._cameras[message.camera].barred:
            region.result, region.published = message, published
        else:
            region.forget(codes.WAITING)
        return True

    def lost(self, topic: str, count: int) -> None:
        """So many messages of a topic can not be had any more."""
        if (region := self._regions.get(topic)) is not None:
            region.count += count
            region.forget(codes.LOST)

    def fail_safe(self, reason: str | None) -> None:
        """What the client says: nothing is to be relied on, for `reason`; or with None, all is well again."""
        self._alarm = reason
        if reason is not None:
            self._forget_all()

    # -- what is shown ----------------------------------------------------------------------------------

    def line(self, now: float) -> LineView:
        reason = self._unsafe(now)
        if reason is not codes.NONE:
            self._forget_all()
        heard = self._heartbeat if reason is not codes.SILENT else None
        return LineView(
            safe=reason is codes.NONE,
            reason=reason,
            state=heard.state if heard else None,
            text=heard.reason if heard and heard.reason else self._alarm,
            heartbeats=self._heartbeats,
            boot_id=self._boot_id,
            recipe=heard.recipe if heard else None,
            config=heard.config if heard else "",
        )

    def camera(self, name: str, now: float) -> CameraView:
        """Of a camera of the layout; nothing is known of it while inspectd is silent."""
        camera = self._cameras[name]
        if self._unsafe(now) is codes.SILENT:
            return CameraView(None, None)
        return CameraView(camera.state, camera.reason)

    def roi(self, camera: str, roi: str, now: float) -> RoiView:
        """Of a region of the layout."""
        region = self._cameras[camera].regions[roi]
        line = self.line(now)
        if not line.safe:
            return _nothing(region, line.reason)
        if self._cameras[camera].barred:
            return _nothing(region, codes.CAMERA)
        if region.result is None:
            return _nothing(region, region.why)
        age_ms = self._transit.age_s(region.published, now) * 1000
        if age_ms >= self.hold_ms:
            region.forget(codes.EXPIRED)
            return _nothing(region, codes.EXPIRED)
        result = region.result
        return RoiView(
            verdict=codes.VERDICT_CODES[result.verdict],
            reason=codes.reason_of(result.reason) if result.verdict == "no_result" else codes.NONE,
            result=result,
            label=_label_index(region.layout, result.label),
            age_ms=age_ms,
            count=region.count,
            seq=region.seq,
        )

    # -- inside -----------------------------------------------------------------------------------------

    def _unsafe(self, now: float) -> Code:
        if self._heartbeat is None or now - self._heard_at >= SILENCE_S:
            return codes.SILENT
        match self._heartbeat.state:
            case "starting":
                return codes.STARTING
            case "busy":
                return codes.BUSY
            case "fault":
                return codes.FAULT
            case "ready":
                return codes.NONE if self._alarm is None else codes.SILENT

    def _boot(self, boot_id: str) -> None:
        """A new boot: what the old one said about anything is over."""
        if boot_id == self._boot_id:
            return
        self._boot_id = boot_id
        self._heartbeat, self._heard_at = None, -math.inf
        self._transit = Transit()
        for camera in self._cameras.values():
            camera.state = camera.reason = None
            for region in camera.regions.values():
                region.seq = 0
        self._forget_all()

    def _forget_all(self) -> None:
        for region in self._regions.values():
            region.forget(codes.WAITING)


def _nothing(region: _Region, why: Code) -> RoiView:
    return RoiView(
        verdict=codes.FAIL_SAFE, reason=why, result=None, label=0, age_ms=None, count=region.count, seq=region.seq
    )


def _label_index(layout: RoiLayout, label: str | None) -> int:
    if label is None:
        return 0
    return layout.labels.index(label) + 1 if label in layout.labels else codes.UNKNOWN_LABEL
