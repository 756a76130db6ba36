"""The real daemon as a subprocess, as a user runs it, on free loopback ports."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import zmq


class DaemonProcess:
    """`inspectd run -c FILE` with JSON logs; knows its endpoints once it has logged `started`.

    `program` is what Python runs: inspectd itself, or a script that prepares something in the process and then runs it.
    """

    def __init__(self, config: Path, env=None, program=("-m", "inspectd")):
        self.logs: list[dict] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, *map(str, program), "run", "-c", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.raw: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._changed:
                self.raw.append(line.rstrip("\n"))
                try:
                    self.logs.append(json.loads(line))
                except ValueError:
                    self.logs.append({"event": "text", "text": line})
                self._changed.notify_all()
        with self._changed:
            self.logs.append({"event": "eof"})
            self._changed.notify_all()

    def wait_for_log(self, event, timeout=30, **fields):
        """The first log line of that event with those fields, now or to come."""

        def found():
            for line in self.logs:
                if line.get("event") == event and all(line.get(k) == v for k, v in fields.items()):
                    return line
                if line.get("event") == "eof" and event != "eof":
                    raise AssertionError("the daemon ended: " + "\n".join(self.raw[-15:]))
            return None

        with self._changed:
            assert self._changed.wait_for(found, timeout), f"no {event} in {timeout} s: " + "\n".join(self.raw[-15:])
            return found()

    def started(self):
        line = self.wait_for_log("started")
        self.endpoint, self.url = line["verdicts"], line["http"].rstrip("/")
        return self

    def scrape(self, path="/metrics"):
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return answer.read().decode()

    def status_code(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as err:
            return err.code

    def stop(self, timeout=10, number=signal.SIGTERM):
        """Signal and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(8)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self._reader.join(5)


class Subscriber:
    """A plain ZeroMQ subscriber that keeps everything it got, with the time it got it.

    `curve` are the server's public key and its own pair, (server, public, secret), where the daemon wants keys.
    """

    def __init__(self, endpoint, topics=("",), curve=None):
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.set(zmq.RCVHWM, 0)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RECONNECT_IVL, 5)
        if curve is not None:
            self.socket.curve_serverkey, self.socket.curve_publickey, self.socket.curve_secretkey = curve
        for topic in topics:
            self.socket.subscribe(topic)
        self.socket.connect(endpoint)
        self.messages: list[dict] = []

    def receive(self, timeout_s=1.0):
        """The next message with its topic under "topic", or None."""
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        topic, payload = self.socket.recv_multipart()
        message = {"topic": topic.decode(), "received": time.monotonic(), **json.loads(payload)}
        self.messages.append(message)
        return message

    def until(self, wanted, timeout_s=20.0):
        """Receive until `wanted(message)` is true; that message."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if message is not None and wanted(message):
                return message
        raise AssertionError(f"not within {timeout_s} s; last: {self.messages[-3:]}")

    def for_seconds(self, seconds):
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.receive(left)
        return self

    def drain(self, quiet_s=0.5):
        """Everything that still arrives until nothing does for `quiet_s`, heartbeats aside."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < quiet_s:
            message = self.receive(0.05)
            if message is not None and not message["topic"].startswith("heartbeat/"):
                quiet_since = time.monotonic()
        return self

    @property
    def verdicts(self):
        return [m for m in self.messages if m["topic"].startswith("verdict/")]

    def close(self):
        self.socket.close(0)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
