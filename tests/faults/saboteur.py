"""`inspectd run -c FILE` with a saboteur in its process, who kills or hangs any one of its threads, for real.

    SABOTEUR=SOCKET python saboteur.py run -c FILE

The socket takes datagrams: `PLACE killed` or `PLACE hung`; `names`, answered with the threads there are; `HANG_S N`:
a hung thread is given up sooner, or later. Killed is an exception that no `except Exception` catches, hung is a wait
without end; either happens in the thread itself, the next time that it comes by its place. The camera is one of the
test's, so that the truth of every frame is known. At the end the daemon's books are logged as `books`.
"""

import functools
import json
import os
import queue
import socket
import sys
import threading
from pathlib import Path

import structlog
import zmq

sys.path.insert(0, str(Path(__file__).parent.parent))

from faulty_camera import FaultyCamera

from inspectd import health, station
from inspectd.capture import camera
from inspectd.capture.camera import Camera
from inspectd.cli import main
from inspectd.daemon import Daemon
from inspectd.engine.batcher import Batcher
from inspectd.observe.http import _Server
from inspectd.observe.metrics import Metrics
from inspectd.pipeline import CropProducer
from inspectd.verdict.evidence import EvidenceStore
from inspectd.verdict.journal.handover import HandOver
from inspectd.verdict.sockets import Sockets

PLACES = {
    # place: (the thread, and a method that it calls on every turn)
    "main": ("MainThread", Camera, "supervise"),
    "zeromq": ("zeromq", Sockets, "serve"),
    "engine": ("engine-bundle", Batcher, "take"),
    "changeover": ("changeover", queue.Queue, "get"),
    "journal": ("journal", HandOver, "take"),
    "replay": ("replay", queue.Queue, "get"),
    "evidence": ("evidence", EvidenceStore, "_next"),
    "access": ("access", zmq.Poller, "poll"),
    "http": ("http", _Server, "handle_request"),
    "http-request": ("http-request", Metrics, "exposition"),
    "capture": ("capture-line", FaultyCamera, "fault"),  # in the camera's library
    "sink": ("capture-line", CropProducer, "inspect"),  # in our own code, a frame in its hands
}


class Killed(BaseException):
    """Nobody expects it."""


class Saboteur:
    """Waits for orders in a thread of his own."""

    def __init__(self, address):
        self.orders = {}  # place -> "killed" or "hung", until it is carried out
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        for place, (thread, owner, method) in PLACES.items():
            setattr(owner, method, self.bribed(getattr(owner, method), place, thread))
        threading.Thread(target=self.listen, name="saboteur", daemon=True).start()

    def bribed(self, method, place, thread):
        @functools.wraps(method)
        def instead(*args, **kwargs):
            if place in self.orders and threading.current_thread().name == thread:
                if self.orders.pop(place) == "killed":
                    raise Killed(place)
                threading.Event().wait()
            return method(*args, **kwargs)

        return instead

    def listen(self):
        while True:
            order, sender = self.socket.recvfrom(1000)
            if order == b"names":
                self.socket.sendto(json.dumps([each.name for each in threading.enumerate()]).encode(), sender)
            else:
                place, fate = order.decode().split()
                if place == "HANG_S":
                    health.HANG_S = camera.HANG_S = float(fate)
                else:
                    self.orders[place] = fate


class BookedDaemon(Daemon):
    """Says at the very end whether its books balance: nobody can scrape them then."""

    def _shutdown(self, running):
        super()._shutdown(running)
        balanced = all(account.balanced for account in self.ledger.snapshot())
        structlog.get_logger("saboteur").info("books", balanced=balanced)


if __name__ == "__main__":
    import inspectd.daemon

    inspectd.daemon.Daemon = BookedDaemon
    station.Camera = functools.partial(Camera, make_source=FaultyCamera(fps=25))
    Saboteur(os.environ["SABOTEUR"])
    main()
