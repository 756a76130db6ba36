"""A real RTSP camera for tests: GStreamer's RTSP server in a process of its own, fed with coded pictures.

Imported, this module offers `RtspServer`, which starts and torments that process. Run by the system's
Python (which has `gi`), the same file is the server: it pushes each coded picture at its time, over
and over, with timestamps that go on across the seam.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path
from typing import Any, Self

_UNIT = struct.Struct("<ddBI")  # pts, dts, key, length of the data that follows
_PAYLOADERS = {
    "h264": ("video/x-h264,stream-format=byte-stream,alignment=au", "h264parse ! rtph264pay config-interval=-1"),
    "hevc": ("video/x-h265,stream-format=byte-stream,alignment=au", "h265parse ! rtph265pay config-interval=-1"),
    "mjpeg": ("image/jpeg", "jpegparse ! rtpjpegpay"),
}
SYSTEM_PYTHON = "/usr/bin/python3"


def free_port() -> int:
    """A TCP port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing() -> str | None:
    """Why no RTSP server can run here, or None."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as err:
        return f"{SYSTEM_PYTHON}: {err}"
    return None if done.returncode == 0 else f"GStreamer RTSP server for {SYSTEM_PYTHON}: {done.stderr.strip()[-200:]}"


Units = list[dict[str, Any]]


class RtspServer:
    """One camera at `rtsp://127.0.0.1:PORT/camera`; `start`, torment, `stop`; may be started again.

    `clip` is a video file (H.264, HEVC or MJPEG) that is sent live and over and over, from its first
    picture for each client. With `shared` all clients watch the same run, and a late one joins in the
    middle of a group of pictures. `units` replaces the clip's coded pictures, for damaged streams.
    `scenes` are other coded pictures by name, as many as the clip's, at the same times and with the same key
    pictures: `show` goes over to one while clients watch; a picture without data is not sent. `loss` is the share of
    RTP packets that never arrive, over either transport. `auth` is (user, password); `digest` picks Digest instead of
    Basic authentication.
    """

    def __init__(
        self,
        clip: Path,
        *,
        port: int | None = None,
        auth: tuple[str, str] | None = None,
        digest: bool = True,
        shared: bool = False,
        units: Units | None = None,
        scenes: dict[str, Units] | None = None,
        loss: float = 0,
    ) -> None:
        self.clip = clip
        self.port = free_port() if port is None else port
        self._auth = auth
        self._options = (["--digest"] if digest else []) + (["--shared"] if shared else []) + ["--loss", str(loss)]
        self._units = units
        self._scenes = scenes or {}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._told = threading.Condition()
        # Guarded by _told.
        self._lines: list[str] = []  # of the process
        self.began: list[float] = []  # when each run's first picture was due, Unix seconds; over all starts
        self.shown: list[tuple[str, float]] = []  # scenes, and since when

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/camera"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self, timeout_s: float = 30) -> Self:
        """Start the process and wait until it listens."""
        assert self._process is None, "already started"
        # Only in the tests' Python.
        import av
        from media import access_units

        with av.open(str(self.clip)) as container:
            codec = container.streams.video[0].codec_context.name
        scenes = {"clip": self._units or access_units(self.clip), **self._scenes}
        folder = self.clip.with_name(f"{self.clip.name}.{self.port}.units")
        folder.mkdir(exist_ok=True)
        for name, units in scenes.items():
            coded = [_UNIT.pack(u["pts"], u["dts"], u["key"], len(u["data"])) + u["data"] for u in units]
            (folder / f"{name}.units").write_bytes(b"".join(coded))
        arguments = [str(folder), codec, str(self.port), *self._options]
        environment = os.environ | ({"RTSP_AUTH": ":".join(self._auth)} if self._auth else {})
        self._lines.clear()
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        with self._told:
            if not self._told.wait_for(lambda: self._lines, timeout_s) or self._lines[0] != "listening":
                self.kill()
                raise RuntimeError(f"the RTSP server did not listen on port {self.port} within {timeout_s} s")
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in chain(process.stdout, ["gone"]):
            with self._told:
                self._lines.append(line.rstrip())
                match line.split():
                    case ["playing", at]:
                        self.began.append(float(at))
                    case ["showing", scene, at]:
                        self.shown.append((scene, float(at)))
                self._told.notify_all()

    def show(self, scene: str = "clip", timeout_s: float = 10) -> float:
        """Go over to that scene, in every run with its next key picture; when that was, in Unix seconds."""
        assert self._process is not None, "not started"
        assert self._process.stdin is not None
        with self._told:
            before = len(self.shown)
            self._process.stdin.write(f"{scene}\n")
            self._process.stdin.flush()
            assert self._told.wait_for(lambda: len(self.shown) > before, timeout_s), f"nobody watches {scene}"
            return self.shown[-1][1]

    def stop(self) -> None:
        """End it politely (clients see their connection close); safe to call twice."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a word, like a power cut that takes the TCP stack along a moment later."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing comes any more."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)  # a stopped process ends only when it runs
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if self._reader is not None:
            self._reader.join(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# From here on: the server process, under the system's Python.


def serve(folder: Path, codec: str, port: int, *, digest: bool, shared: bool, loss: float, auth: str | None) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    scenes = {path.stem: _read_units(path) for path in folder.glob("*.units")}
    units = scenes["clip"]
    wanted = ["clip"]  # scenes, the newest last

    def listen() -> None:
        wanted.extend(line.strip() for line in sys.stdin)

    threading.Thread(target=listen, daemon=True).start()
    times = sorted(unit["pts"] for unit in units)
    # the loop's length: the last picture lasts as long as the one before
    length = times[-1] - times[0] + (times[-1] - times[-2] if len(times) > 1 else 0.04)
    caps, payloader = _PAYLOADERS[codec]

    def feed(source: Any, stop: threading.Event) -> None:
        base = source.get_clock().get_time() - source.get_base_time()
        started = time.monotonic()
        print("playing", time.time(), flush=True)
        scene, lap = "clip", 0
        while True:
            for number in range(len(units)):
                changes = wanted[-1] != scene and scenes[wanted[-1]][number]["key"]
                scene = wanted[-1] if changes else scene
                unit = scenes[scene][number]
                at = lap * length + unit["dts"] - units[0]["dts"]
                if stop.wait(max(0.0, started + at - time.monotonic())):
                    return
                if changes:
                    print("showing", scene, time.time(), flush=True)
                if not unit["data"]:
                    continue
                buffer = Gst.Buffer.new_wrapped(unit["data"])
                buffer.pts = base + int((lap * length + unit["pts"] - units[0]["dts"]) * Gst.SECOND)
                buffer.dts = base + int(at * Gst.SECOND)
                if not unit["key"]:
                    buffer.set_flags(Gst.BufferFlags.DELTA_UNIT)
                if source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                    return
            lap += 1

    def configure(_factory: Any, media: Any) -> None:
        source = media.get_element().get_by_name("source")
        stop = threading.Event()
        feeders: list[threading.Thread] = []

        def need_data(_source: Any, _size: int) -> None:
            if not feeders:
                feeders.append(threading.Thread(target=feed, args=(source, stop), daemon=True))
                feeders[0].start()

        def prepared(media: Any) -> None:
            for number in range(media.n_streams()):
                session = media.get_stream(number).get_rtpsession()
                if session is not None:
                    session.set_property("rtcp-min-interval", 200 * 1_000_000)  # ns; the default is 5 s

        source.connect("need-data", need_data)
        media.connect("prepared", prepared)
        media.connect("unprepared", lambda _media: stop.set())

    factory = GstRtspServer.RTSPMediaFactory()
    # The server takes RTP from whatever element is called pay0.
    output = f"pt=96 ! identity drop-probability={loss} name=pay0" if loss else "pt=96 name=pay0"
    factory.set_launch(f"( appsrc name=source is-live=true format=time caps={caps} ! {payloader} {output} )")
    factory.set_shared(shared)
    factory.connect("media-configure", configure)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(port))
    if auth is not None:
        _require_login(GstRtspServer, server, factory, *auth.split(":", 1), digest=digest)
    server.get_mount_points().add_factory("/camera", factory)
    loop = GLib.MainLoop()
    GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGTERM, loop.quit)
    if not server.attach(None):
        sys.exit(f"cannot listen on port {port}")
    print("listening", flush=True)
    loop.run()


def _require_login(rtsp: Any, server: Any, factory: Any, user: str, password: str, *, digest: bool) -> None:
    from gi.repository import GstRtsp

    auth = rtsp.RTSPAuth()
    token = rtsp.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    if digest:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, token)
    else:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.BASIC)
        auth.add_basic(rtsp.RTSPAuth.make_basic(user, password), token)
    factory.add_role_from_structure(_role())
    server.set_auth(auth)


def _role() -> Any:
    from gi.repository import Gst

    structure = Gst.Structure.new_empty("viewer")
    structure.set_value("media.factory.access", True)
    structure.set_value("media.factory.construct", True)
    return structure


def _read_units(path: Path) -> Units:
    blob = path.read_bytes()
    units: Units = []
    at = 0
    while at < len(blob):
        pts, dts, key, size = _UNIT.unpack_from(blob, at)
        at += _UNIT.size
        units.append({"pts": pts, "dts": dts, "key": bool(key), "data": blob[at : at + size]})
        at += size
    return units


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("codec", choices=sorted(_PAYLOADERS))
    parser.add_argument("port", type=int)
    parser.add_argument("--digest", action="store_true")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--loss", type=float, default=0)
    given = parser.parse_args()
    serve(
        given.folder,
        given.codec,
        given.port,
        digest=given.digest,
        shared=given.shared,
        loss=given.loss,
        auth=os.environ.get("RTSP_AUTH"),
    )
