"""Who uses the daemon meanwhile: a client that triggers, subscribers that come and go, one that asks for replays."""

import json
import random
import threading
import time
from collections import deque

import zmq
from guarded import guarded
from watcher import Watcher

DEADLINE_MS = 400
ANSWERED_S = 60.0
"""After a trigger's acceptance its answers are counted: longer than the daemon is ever stopped."""
REPLY_S = 45.0


class Triggerer:
    """Triggers the camera "gate" at random moments. Every accepted trigger must get exactly one answer."""

    def __init__(self, control: str, watcher: Watcher, seed: int, broken) -> None:
        self._control = control
        self._watcher = watcher
        self._dice = random.Random(seed)
        self._broken = broken
        self._ending = threading.Event()
        self._thread = guarded("triggerer", self._run, broken)
        self._open: deque[tuple[float, str]] = deque()
        self.asked = self.accepted = self.refused = self.unanswered = 0

    def start(self) -> "Triggerer":
        self._thread.start()
        return self

    def stop(self) -> None:
        """No more triggers; `settle` afterwards, when all answers must be here."""
        self._ending.set()
        self._thread.join(REPLY_S + 5)

    def settle(self, accepted_before: float = float("inf")) -> None:
        """Hold the triggers accepted before that moment against their answers."""
        while self._open and self._open[0][0] < accepted_before:
            _, trigger_id = self._open.popleft()
            answers = self._watcher.answers.pop((trigger_id, "part"), 0)
            if answers != 1:
                self.unanswered += 1
                self._broken("one answer to each trigger", f"trigger {trigger_id} got {answers}")

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as control:
            control.set(zmq.LINGER, 0)
            control.connect(self._control)
            while not self._ending.wait(self._dice.uniform(0.1, 0.9)):
                self.asked += 1
                request = {"op": "trigger", "id": self.asked, "camera": "gate", "deadline_ms": DEADLINE_MS}
                control.send(json.dumps(request).encode())
                if not control.poll(int(REPLY_S * 1000)):
                    self._broken("every request is answered", f"trigger {self.asked} got no reply in {REPLY_S} s")
                    continue
                reply = json.loads(control.recv())
                if reply["ok"]:
                    self.accepted += 1
                    self._open.append((time.monotonic(), reply["trigger_id"]))
                else:
                    self.refused += 1
                self.settle(time.monotonic() - ANSWERED_S)


class Visitors:
    """A subscriber for a second every few seconds, and a page of the journal in between."""

    def __init__(self, endpoint: str, control: str, seed: int, broken) -> None:
        self._endpoint, self._control = endpoint, control
        self._dice = random.Random(seed)
        self._ending = threading.Event()
        self._thread = guarded("visitors", self._run, broken)
        self.came = self.pages = 0

    def start(self) -> "Visitors":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(10)

    def _run(self) -> None:
        with zmq.Context() as context:
            while not self._ending.wait(self._dice.uniform(1, 3)):
                with context.socket(zmq.SUB) as stream:
                    stream.set(zmq.LINGER, 0)
                    stream.subscribe(self._dice.choice(["", "verdict/belt1/", "heartbeat/"]))
                    stream.connect(self._endpoint)
                    self._ending.wait(1)
                    self.came += bool(stream.poll(0))
                with context.socket(zmq.REQ) as control:
                    control.set(zmq.LINGER, 0)
                    control.connect(self._control)
                    first = self._dice.randrange(1, 5000)
                    control.send_json({"op": "replay", "topic": "verdict/belt1/part/", "from_seq": first, "limit": 50})
                    self.pages += bool(control.poll(2000))
