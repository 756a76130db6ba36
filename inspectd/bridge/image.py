"""What a PLC may act on at this moment: the one state that both bridges show.

Nothing here knows a socket or a clock; messages are fed in with the time, and views are taken with the time. So an
age or an expiry is exact whenever somebody looks, and no timer can be late.

A result is shown only while everything speaks for it: it came live (neither repeated nor recovered), it is the
newest of its region, it is younger than `hold_ms`, the heartbeat is younger than a second and says `ready`, the
client says that all is well, and the camera is not at fault. When one of these ends, the result is forgotten: it
never comes back, only the next one counts.

A PLC attributes results to parts by `count`. So everything that was published while this bridge listens is counted,
once: live, recovered, lost, or missed and then known by its repeat. What a daemon that ended published last may be
missing in it; a restart is told by `ready` falling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from inspectd.bridge import codes
from inspectd.bridge.codes import Code
from inspectd.bridge.layout import Layout, RoiLayout
from inspectd.bridge.views import CameraView, LineView, Result, RoiView
from inspectd.client.transit import Transit, unix_s
from inspectd.verdict.schema import (
    CameraStatus,
    Heartbeat,
    State,
    Verdict,
    part_topic,
    status_topic,
    verdict_topic,
)

SILENCE_S = 1.0
"""Without a heartbeat for so long outputs are fail-safe, whatever the client says."""

RESTART_S = 1.0
"""So long after a restart of inspectd was noticed outputs are fail-safe, that every PLC sees it."""


@dataclass(slots=True)
class _Region:
    layout: RoiLayout
    result: Result | None = None
    published: float = 0.0  # Unix seconds, the daemon's clock
    why: Code = codes.WAITING  # there is no result
    count: int = 0
    seq: int = 0
    before: float = math.inf  # newest seq of the running boot from before this bridge listened, once that is known

    def forget(self, why: Code) -> None:
        self.result, self.why = None, why


@dataclass(slots=True)
class _Camera:
    regions: dict[str, _Region]
    state: State | None = None
    reason: str | None = None
    lost: bool = False  # what it told last; `state` is None then

    @property
    def barred(self) -> bool:
        return self.lost or self.state in ("starting", "fault")

    def set(self, state: State | None, reason: str | None, *, lost: bool = False) -> None:
        self.state, self.reason, self.lost = state, reason, lost
        if self.barred:
            for region in self.regions.values():
                region.forget(codes.WAITING)


@dataclass(slots=True)
class LineImage:
    """See the module. One thread uses it; a view is taken in one go, so it never shows half a message."""

    layout: Layout
    hold_ms: float
    _cameras: dict[str, _Camera] = field(init=False)
    _regions: dict[str, _Region] = field(init=False)  # by the topic that drives them
    _transit: Transit = field(init=False, default_factory=Transit)
    _boot_id: str | None = field(init=False, default=None)
    _listening: bool = field(init=False, default=False)  # a heartbeat was heard: whatever comes now is new
    _unsafe_until: float = field(init=False, default=-math.inf)  # after a restart of the daemon
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
        self._boot(message.boot_id, now)
        if not self._listening:
            self._listening = True
            for topic, region in self._regions.items():
                region.before = message.topics.get(topic, 0)
        self._transit.heard(unix_s(message.published_at), now)
        age = self._transit.age_s(unix_s(message.published_at), now)
        if age >= SILENCE_S:
            return  # it waited somewhere; nobody knows whether its sender still lives
        if self._unsafe(now) is not codes.NONE:
            self._forget_all()  # a silence that ends here may have had no witness
        self._heartbeat, self._heard_at = message, now - age
        self._heartbeats += 1
        if message.state != "ready":
            self._forget_all()

    def status(self, message: CameraStatus, now: float, *, recovered: bool) -> None:
        """A camera's state; a repeated or `recovered` one as well, because it holds until the next."""
        if recovered and message.boot_id != self._boot_id:
            return
        self._boot(message.boot_id, now)
        if (camera := self._cameras.get(message.camera)) is not None:
            camera.set(message.state, message.reason)

    def learnt(self, boot_id: str, name: str, state: State, reason: str | None) -> None:
        """A camera's state by another way than its topic: counts while nothing is known from there."""
        camera = self._cameras.get(name)
        if camera is not None and camera.state is None and boot_id == self._boot_id:
            camera.set(state, reason)

    def result(self, message: Result, now: float, *, recovered: bool) -> bool:
        """A verdict; True when it is of this line, and of what drives its region.

        Only a live one is ever shown: neither `recovered` by the client nor repeated by the daemon.
        """
        topic = (verdict_topic if isinstance(message, Verdict) else part_topic)(message.camera, message.roi)
        region = self._regions.get(topic)
        if recovered and message.boot_id != self._boot_id:
            if region is not None:
                region.count += 1  # of a boot that is over, or that nothing live was heard of yet
            return region is not None
        self._boot(message.boot_id, now)
        if region is None or message.seq <= region.seq:
            return False
        region.seq = message.seq
        if message.replayed and message.seq <= region.before:
            region.forget(codes.WAITING)
            return True
        region.count += 1
        if recovered or message.replayed:
            region.forget(codes.LOST)
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
        for name, camera in self._cameras.items():
            if topic == status_topic(name):
                camera.set(None, None, lost=True)

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
        if now < self._unsafe_until:
            return codes.STARTING
        match self._heartbeat.state:
            case "starting":
                return codes.STARTING
            case "busy":
                return codes.BUSY
            case "fault":
                return codes.FAULT
            case "ready":
                return codes.NONE if self._alarm is None else codes.SILENT

    def _boot(self, boot_id: str, now: float) -> None:
        """A new boot: what the old one said about anything is over."""
        if boot_id == self._boot_id:
            return
        if self._boot_id is not None:
            self._listening, self._unsafe_until = True, now + RESTART_S
            for region in self._regions.values():
                region.seq = region.before = 0
        self._boot_id = boot_id
        self._heartbeat, self._heard_at = None, -math.inf
        self._transit = Transit()
        for camera in self._cameras.values():
            camera.set(None, None)
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
