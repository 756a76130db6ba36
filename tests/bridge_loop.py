"""A bridge that runs in the test's own process: its event loop in a thread, the server on a free port."""

import asyncio
import threading
import time

from inspectd.bridge.layout import Layout
from inspectd.bridge.line import Line
from inspectd.bridge.process import run_bridge
from inspectd.observe.systemd import Notifier

LAYOUT = Layout.model_validate(
    {
        "cameras": [
            {"name": "top", "rois": [{"name": "part", "labels": ["good", "scratch", "empty"]}, {"name": "lid"}]},
            {"name": "side", "rois": [{"name": "edge", "from": "part", "labels": ["good", "scratch"]}]},
        ]
    }
)
CAMERAS = {"top": ("part", "lid"), "side": ("edge",)}


class Ready(Notifier):
    """Takes the place of systemd."""

    def __init__(self):
        super().__init__(None)
        self.told = threading.Event()
        self.serving = ""

    def ready(self, status=""):
        self.serving = status.removeprefix("serving ")
        self.told.set()


class Bridge:
    """`make(line)` makes the server. `run(coroutine)` runs in the bridge's loop."""

    def __init__(self, make, verdicts, control, *, layout=LAYOUT, hold_ms=1000):
        self.line = Line(layout, hold_ms=hold_ms, verdicts=verdicts, control=control)
        self.server = make(self.line)
        self.notifier = Ready()
        self.loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        self._running = asyncio.run_coroutine_threadsafe(
            run_bridge(self.line, self.server, self.notifier, self._stop), self.loop
        )
        self._running.add_done_callback(lambda _: self.notifier.told.set())
        assert self.notifier.told.wait(20)
        if self._running.done():
            self._running.result()
        self.address = self.notifier.serving
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self._stop.set)
        self._running.result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)
        self.loop.close()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def await_line(self, fake):
        """Until results of this line are shown, without waiting for the next heartbeat in its turn."""
        fake.await_subscriber()
        fake.beat()
        until(self.safe)

    def safe(self):
        """Whether results are shown, at this moment."""

        async def ask():
            return self.line.image.line(time.monotonic()).safe

        return self.run(ask())


def until(condition, timeout_s=10.0):
    """Ask until it is true, and give that back; everything here ends by a message, none tells the test."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
    return found
