"""A real RTSP camera for tests: GStreamer's RTSP server in a process of its own, fed with coded pictures.

Imported, this module offers `RtspServer`, which starts and torments that process. Run by the system's
Python (which has `gi`), the same file is the server: it pushes each coded picture at its time, over
and over, with timestamps that go on across the seam.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
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


class RtspServer:
    """One camera at `rtsp://127.0.0.1:PORT/camera`; `start`, torment, `stop`; may be started again.

    `clip` is a video file (H.264, HEVC or MJPEG) that is sent live and over and over, from its first
    picture for each client. With `shared` all clients watch the same run, and a late one joins in the
    middle of a group of pictures. `units` replaces the clip's coded pictures, for damaged streams.
    `loss` is the share of RTP packets that never arrive, over either transport.
    `auth` is (user, password); `digest` picks Digest instead of Basic authentication.
    """

    def __init__(
        self,
        clip: Path,
        *,
        port: int | None = None,
        auth: tuple[str, str] | None = None,
        digest: bool = True,
        shared: bool = False,
        units: list[dict[str, Any]] | None = None,
        loss: float = 0,
    ) -> None:
        self.clip = clip
        self.port = free_port() if port is None else port
        self._auth = auth
        self._options = (["--digest"] if digest else []) + (["--shared"] if shared else []) + ["--loss", str(loss)]
        self._units = units
        self._process: subprocess.Popen[str] | None = None

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
        unit_file = self.clip.with_name(f"{self.clip.name}.{self.port}.units")
        units = self._units or access_units(self.clip)
        unit_file.write_bytes(
            b"".join(_UNIT.pack(u["pts"], u["dts"], u["key"], len(u["data"])) + u["data"] for u in units)
        )
        arguments = [str(unit_file), codec, str(self.port), *self._options]
        environment = os.environ | ({"RTSP_AUTH": ":".join(self._auth)} if self._auth else {})
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, __file__, *arguments], stdout=subprocess.PIPE, env=environment, text=True
        )
        with selectors.DefaultSelector() as selector:
            assert self._process.stdout is not None
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s) or self._process.stdout.readline() != "listening\n":
                self.kill()
                raise RuntimeError(f"the RTSP server did not listen on port {self.port} within {timeout_s} s")
        return self

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
        if process.stdout is not None:
            process.stdout.close()


# From here on: the server process, under the system's Python.


def serve(unit_file: Path, codec: str, port: int, *, digest: bool, shared: bool, loss: float, auth: str | None) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    units = _read_units(unit_file)
    times = sorted(unit["pts"] for unit in units)
    # the loop's length: the last picture lasts as long as the one before
    length = times[-1] - times[0] + (times[-1] - times[-2] if len(times) > 1 else 0.04)
    caps, payloader = _PAYLOADERS[codec]

    def feed(source: Any, stop: threading.Event) -> None:
        base = source.get_clock().get_time() - source.get_base_time()
        started = time.monotonic()
        lap = 0
        while True:
            for unit in units:
                at = lap * length + unit["dts"] - units[0]["dts"]
                if stop.wait(max(0.0, started + at - time.monotonic())):
                    return
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


def _read_units(path: Path) -> list[dict[str, Any]]:
    blob = path.read_bytes()
    units: list[dict[str, Any]] = []
    at = 0
    while at < len(blob):
        pts, dts, key, size = _UNIT.unpack_from(blob, at)
        at += _UNIT.size
        units.append({"pts": pts, "dts": dts, "key": bool(key), "data": blob[at : at + size]})
        at += size
    return units


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("units", type=Path)
    parser.add_argument("codec", choices=sorted(_PAYLOADERS))
    parser.add_argument("port", type=int)
    parser.add_argument("--digest", action="store_true")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--loss", type=float, default=0)
    given = parser.parse_args()
    serve(
        given.units,
        given.codec,
        given.port,
        digest=given.digest,
        shared=given.shared,
        loss=given.loss,
        auth=os.environ.get("RTSP_AUTH"),
    )
