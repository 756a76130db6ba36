"""The notify protocol, against a real datagram socket as systemd has one."""

import contextlib
import os
import socket
import time
import uuid

import pytest
import structlog

from inspectd.observe.systemd import Notifier
from inspectd.workers import LATE_S


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """(socket that receives, value of $NOTIFY_SOCKET)."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@inspectd-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        receiver.settimeout(5)
        yield receiver, address


def received(receiver):
    """Every message that is there, in order; senders are done by now."""
    receiver.setblocking(False)
    messages = []
    try:
        while True:
            messages.append(receiver.recv(4096).decode())
    except BlockingIOError:
        return messages


def test_the_life_of_a_daemon_as_systemd_sees_it(systemd):
    """READY, a status, a watchdog message, STOPPING: one datagram each, over both kinds of address."""
    receiver, address = systemd
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    assert notifier.enabled
    notifier.ready("2 camera(s)")
    notifier.status("fault: cam1 refused")
    notifier.watchdog()
    notifier.stopping()
    assert received(receiver) == [
        "READY=1\nSTATUS=2 camera(s)",
        "STATUS=fault: cam1 refused",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_the_watchdog_may_be_fed_on_every_turn(systemd):
    """Only what systemd needs is sent: twice within the interval that it was told."""
    receiver, address = systemd
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3600000000"})
    assert notifier.watchdog_interval_s == 1800
    for _ in range(1000):
        notifier.watchdog()
    assert received(receiver) == ["WATCHDOG=1"]


def test_a_lost_watchdog_message_is_sent_again_at_once(tmp_path):
    """Half an interval must not pass because systemd was not there for a moment."""
    path = tmp_path / "notify"
    notifier = Notifier(str(path), watchdog_interval_s=1800)
    with structlog.testing.capture_logs() as logs:
        notifier.watchdog()
        notifier.watchdog()
    assert [line["event"] for line in logs] == ["notify_failed"]  # said once, not on every turn
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        notifier.watchdog()
        assert received(receiver) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {},
    ],
)
def test_no_watchdog_message_where_nobody_watches_this_process(systemd, environ):
    """Another process is meant, or none; nonsense does not stop the start."""
    receiver, address = systemd
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, **environ})
    notifier.watchdog()
    notifier.ready()
    assert notifier.watchdog_interval_s is None
    assert received(receiver) == ["READY=1"]


def test_the_watchdog_is_ours_when_it_names_our_pid(systemd):
    """As systemd sets it for the main process of a service."""
    _, address = systemd
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(environ).watchdog_interval_s == 1.0


def test_a_status_cannot_smuggle_in_another_message(systemd):
    """Line breaks separate assignments; camera errors may contain any text."""
    receiver, address = systemd
    Notifier(address).status("broken\nREADY=1\r\nMAINPID=1")
    assert received(receiver) == ["STATUS=broken READY=1 MAINPID=1"]


def test_a_status_shows_no_password_and_stays_short(systemd):
    """Anybody may call systemctl status."""
    receiver, address = systemd
    Notifier(address).status("cannot open rtsp://admin:hunter2@cam/1 " + "x" * 5000)
    (message,) = received(receiver)
    assert message.startswith("STATUS=cannot open rtsp://***@cam/1 xxx")
    assert len(message) < 300


def test_without_systemd_nothing_happens():
    """On a terminal, in a container, in a test."""
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "30000000"})
    assert not notifier.enabled
    with structlog.testing.capture_logs() as logs:
        notifier.ready("x")
        notifier.watchdog()
        notifier.stopping()
    assert logs == []


def test_an_address_of_an_unknown_kind_is_said_and_ignored():
    """A newer systemd may name a vsock."""
    with structlog.testing.capture_logs() as logs:
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"})
    assert not notifier.enabled
    assert [line["event"] for line in logs] == ["notify_socket_unknown"]


def test_a_full_socket_does_not_block_the_main_loop(tmp_path):
    """systemd that does not read makes no turn late, also one that tells a new state, and costs no exception."""
    path = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler,
    ):
        receiver.bind(path)
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", path)
        notifier = Notifier(path, watchdog_interval_s=1)
        with structlog.testing.capture_logs() as logs:
            begun = time.monotonic()
            notifier.status("ready")
            notifier.watchdog()
            assert time.monotonic() - begun < LATE_S
        assert [line["event"] for line in logs] == ["notify_failed"]
