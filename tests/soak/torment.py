"""What a fault of a soak is: injected for real from outside by `begin`, and ended after its time by `end`.

What is expected of the daemon stands beside each: by what it is detected, and what shows that it is over.
"""

import random
from dataclasses import dataclass

import zmq
from plant_site import LineDaemon, Site, Street
from schedule import Kind
from small_disk import SmallDisk

ASK_S = 30.0


@dataclass
class Line:
    """What torments may lay hands on."""

    site: Site
    street: Street
    daemon: LineDaemon
    disk: SmallDisk | None
    """Where the evidence lies; None where none could be made."""

    def ask(self, op: str, **fields) -> dict:
        """One request at the control socket and its reply; {} when none comes in time."""
        with zmq.Context() as context, context.socket(zmq.REQ) as socket_:
            socket_.set(zmq.LINGER, 0)
            socket_.connect(self.daemon.control)
            socket_.send_json({"op": op, **fields})
            return socket_.recv_json() if socket_.poll(int(ASK_S * 1000)) else {}


class Torment:
    """One kind of fault. `begin` and `end` are called once each, by the thread that goes through the schedule.

    `detect_s`, `recover_s`: how soon it must be seen and over; None where there is nothing to see. `sign` and `cure`
    are what is seen on the stream; `remark` is what else is worth a line in the report.
    """

    kind: Kind
    group = "camera"
    detect_s: float | None = None
    recover_s: float | None = 10.0
    camera = "belt1"

    def __init__(self, line: Line, seed: int) -> None:
        self.line = line
        self.dice = random.Random(seed)
        self.remark = ""

    def begin(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        pass

    def settled(self) -> None:
        """It is over, or was given up: leave everything as it was found."""

    def sign(self, now: float, topic: str, message: dict) -> bool:
        """Whether this message tells that something is wrong."""
        return topic == f"status/{self.camera}/" and message["state"] == "fault" and not message["replayed"]

    def cure(self, now: float, topic: str, message: dict) -> bool:
        """Whether this message, after the end, shows that all is well again: a judgement of the camera."""
        return topic == f"verdict/{self.camera}/part/" and message["reason"] is None and not message["replayed"]
