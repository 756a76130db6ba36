"""One inspectd as a bridge sees it: its stream feeds the image, and a PLC's triggers go the other way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, get_args

import structlog

from inspectd.bridge import codes
from inspectd.bridge.handshake import REPLY_TIMEOUT_S, Handshake, Order
from inspectd.bridge.image import LineImage
from inspectd.bridge.layout import Layout
from inspectd.bridge.views import Result
from inspectd.client import AsyncClient, ControlRefused, ControlTimeout, Keys, Lost, Received
from inspectd.errors import UsageError
from inspectd.verdict.schema import HEARTBEAT_TOPIC, CameraStatus, Heartbeat, Part, State, Verdict

log = structlog.get_logger(__name__)

_STATUS = "status/"

Watcher = Callable[[Result | None], Awaitable[None]]
"""Told after everything that was heard: a live result of a region, or None for all else."""


class Line:
    """Owned by one event loop. `connect()` first, then `run()` until it is cancelled.

    The client's replay is off: what it would recover may not drive an output, and waiting for it would hold back
    what may. A gap is known at once, and its region is fail-safe until the next result.
    """

    def __init__(
        self, layout: Layout, *, hold_ms: float, verdicts: str, control: str, keys: Keys | None = None
    ) -> None:
        self.layout = layout
        self.image = LineImage(layout, hold_ms)
        self.handshakes = {
            camera.name: Handshake(camera.name, frozenset(roi.name for roi in camera.rois)) for camera in layout.cameras
        }
        self.watcher: Watcher | None = None
        self._verdicts, self._control, self._keys = verdicts, control, keys
        self._client: AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Boot, config and recipe of which the daemon's own account was asked for last.
        self._compared: tuple[str, str, str | None] | None = None
        self._comparing = self._unanswered = False

    @property
    def client(self) -> AsyncClient:
        """For requests.

        Raises:
            ControlTimeout: before `connect()`.
        """
        if self._client is None:
            raise ControlTimeout("the bridge has not connected yet")
        return self._client

    async def connect(self) -> None:
        """Begin to listen; the daemon may come later.

        Raises:
            UsageError: an endpoint or a key cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._client = AsyncClient(
            self._verdicts,
            self._control,
            topics=sorted({HEARTBEAT_TOPIC, _STATUS, *self.image.topics}),
            keys=self._keys,
            # Perhaps from the client's own thread.
            fail_safe=lambda reason: _ignore_closed(loop, self.fail_safe, reason),
            replay=False,
        )
        await self._client.start()

    async def run(self) -> None:
        """Feed the image until cancelled."""
        async for event in self.client:
            match event:
                case Received():
                    heard = self.received(event)
                case Lost():
                    self._lost(event)
                    heard = None
                case _:
                    heard = None
            if self.watcher is not None:
                await self.watcher(heard)
            # Nothing above waits while events do: without this turn nobody else in the loop would ever have one.
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop listening. May be called twice."""
        for task in self._tasks:
            task.cancel()
        if self._client is not None:
            await self._client.close()

    def fail_safe(self, reason: str | None) -> None:
        """What the client says of the line; None is that all is well."""
        log.info("line_safe") if reason is None else log.warning("line_fail_safe", reason=reason)
        self.image.fail_safe(reason)
        if reason is not None:
            for handshake in self.handshakes.values():
                handshake.unsafe()

    def received(self, event: Received) -> Result | None:
        """Take note of a message; gives it back when it is a live result of a region."""
        match event.message:
            case Heartbeat() as beat:
                if not event.recovered:
                    self.image.heartbeat(beat, time.monotonic())
                    self._compare(beat)
            case CameraStatus() as status:
                self.image.status(status, time.monotonic(), recovered=event.recovered)
            case Verdict() | Part() as result:
                live = event.live
                # One that was read too late counts as recovered: it happened, and nobody may act on it.
                recovered = event.recovered or not (live or result.replayed)
                ours = self.image.result(result, time.monotonic(), recovered=recovered)
                if ours and live:
                    self._answered(result)
                    return result
        return None

    def _lost(self, event: Lost) -> None:
        log.warning("results_lost", topic=event.topic, first=event.first, last=event.last)
        self.image.lost(event.topic, event.count)
        if event.topic.startswith(_STATUS):
            self._compared = None  # what is under way may be older than what was lost

    def order(self, order: Order) -> None:
        """Send a PLC's trigger; its handshake is told what became of it."""
        self._spawn(self._send(order))

    def _answered(self, result: Result) -> None:
        if isinstance(result, Verdict) and result.trigger_id is not None:
            self.handshakes[result.camera].answered(result.trigger_id, result.roi)

    async def _send(self, order: Order) -> None:
        handshake = self.handshakes[order.camera]
        try:
            accepted = await self.client.trigger(
                order.camera, order.part_id, deadline_ms=order.deadline_ms, timeout_s=REPLY_TIMEOUT_S
            )
        except ControlRefused as err:
            log.warning("trigger_refused", camera=order.camera, part_id=order.part_id, code=err.code, why=err.message)
            handshake.refused(order, codes.error_of(err.code), time.monotonic())
        except ControlTimeout as err:
            log.warning("trigger_unanswered", camera=order.camera, part_id=order.part_id, why=str(err))
            handshake.refused(order, codes.NO_REPLY, time.monotonic())
        except UsageError as err:
            log.warning("trigger_impossible", camera=order.camera, part_id=order.part_id, why=str(err))
            handshake.refused(order, codes.error_of("bad_request"), time.monotonic())
        else:
            handshake.accepted(order, accepted.trigger_id, time.monotonic())

    # -- the daemon's own account: what it judges, and states of cameras that were missed ----------------

    def _compare(self, beat: Heartbeat) -> None:
        current = (beat.boot_id, beat.config, beat.recipe)
        # One that starts does not know yet what it will judge.
        if beat.state != "starting" and current != self._compared and not self._comparing:
            self._comparing, self._compared = True, current
            self._spawn(self._compare_with_status())

    async def _compare_with_status(self) -> None:
        try:
            status = await self.client.status()
        except (ControlRefused, ControlTimeout) as err:
            if not self._unanswered:  # asked again at the next heartbeat, and the next
                log.warning("status_unanswered", why=str(err))
            self._unanswered, self._compared = True, None
        else:
            self._unanswered = False
            self.expect(status)
        finally:
            self._comparing = False

    def expect(self, status: dict[str, Any]) -> None:
        """From the daemon's own account: which regions will answer a trigger, what the layout does not fit, and the
        states of cameras whose own word was missed."""
        try:
            judged = {camera["name"]: {roi["name"] for roi in camera["rois"]} for camera in status["cameras"]}
        except (LookupError, TypeError):
            log.warning("status_unreadable")
            return
        for camera in self.layout.cameras:
            rois = {roi.name for roi in camera.rois}
            here = judged.get(camera.name, set())
            if absent := sorted(rois - here):
                log.warning("layout_region_not_judged", camera=camera.name, regions=absent)
            if unknown := sorted(here - rois):
                log.warning("region_not_in_layout", camera=camera.name, regions=unknown)
            self.handshakes[camera.name].rois = frozenset(rois & here or rois)
        if self._compared is None:
            return  # something was missed since it was asked for: it is asked for again
        for told in status["cameras"]:
            if told.get("state") in get_args(State):
                self.image.learnt(status.get("boot_id", ""), told["name"], told["state"], told.get("reason"))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _ignore_closed(loop: asyncio.AbstractEventLoop, call: Callable[[str | None], None], reason: str | None) -> None:
    with suppress(RuntimeError):  # the loop has ended, and with it everything that could be unsafe
        loop.call_soon_threadsafe(call, reason)
