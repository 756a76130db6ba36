"""The client against a line that misbehaves on order: real sockets, real threads, real time."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from fake_line import FakeLine, unused_endpoint

from inspectd.client import (
    AsyncClient,
    Client,
    Control,
    ControlRefused,
    ControlTimeout,
    Event,
    Health,
    Heartbeat,
    Keys,
    Lost,
    Received,
    Restarted,
    Unreadable,
)
from inspectd.client.connection import requester
from inspectd.client.exchange import Exchange
from inspectd.errors import InspectdError, UsageError
from inspectd.verdict.control_schema import StatusRequest
from inspectd.verdict.keys import load_certificate, write_pair

TOPIC = "verdict/top/part/"
FAST = 0.3  # seconds between heartbeats: as quick as they can be and still tell a stream that is read in time


@pytest.fixture
def line() -> Iterator[FakeLine]:
    with FakeLine(heartbeat_s=FAST) as made:
        yield made


@pytest.fixture
def client(line: FakeLine) -> Iterator[Client]:
    with Client(line.verdicts, line.control) as made:
        be_heard(line, made)
        yield made


def be_heard(line: FakeLine, client: Client) -> None:
    """A heartbeat at once, and not when the next one is due."""
    line.await_subscriber("status/")
    line.await_subscriber()
    line.beat()
    until(client, lambda event: event == Health(None))


@contextmanager
def running(program: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """A Python program in a process, and what reads its next line."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline
        finally:
            process.kill()


def until(client: Client, wanted: Callable[[Event], bool]) -> list[Event]:
    """Events up to the first that is wanted, without those about health but that one."""
    seen = []
    while True:
        event = client.receive(20)
        assert event is not None, f"it never came: {seen}"
        if wanted(event):
            return [*seen, event]
        if not isinstance(event, Health):
            seen.append(event)


def messages(client: Client, count: int) -> list[Received]:
    """The next so many events, which are all messages."""
    events = [until(client, lambda event: not isinstance(event, Health))[-1] for _ in range(count)]
    assert all(isinstance(event, Received) for event in events), events
    return events  # type: ignore[return-value]


def told(events: list[Any]) -> list[tuple[int, bool]]:
    return [(event.message.seq, event.live) for event in events]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def limits_ms(port: int) -> list[int]:
    """TCP_USER_TIMEOUT of this process's connections to a port."""
    found = []
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(number.name))) as each:
            if each.family == socket.AF_INET and each.getpeername()[1] == port:
                found.append(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    return found


class Alarm:
    """A fail_safe whose calls can be waited for; monotonic seconds beside each."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[str | None, float]] = queue.Queue()

    def __call__(self, reason: str | None) -> None:
        self.calls.put((reason, time.monotonic()))

    def next(self) -> str | None:
        return self.calls.get(timeout=20)[0]

    def until(self, reason: str | None) -> float:
        """When it was told so."""
        while True:
            said, at = self.calls.get(timeout=20)
            if said == reason:
                return at


class TestStream:
    def test_verdicts_parts_and_states_as_they_are_published(self, line: FakeLine, client: Client) -> None:
        sent = [line.verdict("fail"), line.part("pass"), line.status("top", "fault", "stall")]
        got = messages(client, 3)
        assert [event.message for event in got] == sent
        assert [event.topic for event in got] == [TOPIC, "part/top/part/", "status/top/"]
        assert all(event.live for event in got)

    def test_msgpack_is_read_as_well(self) -> None:
        with FakeLine(heartbeat_s=FAST, encoding="msgpack") as line, Client(line.verdicts, line.control) as client:
            line.await_subscriber("verdict/")
            assert messages(client, 0) == []
            sent = line.verdict("fail")
            assert messages(client, 1)[0].message == sent

    def test_a_last_value_is_told_and_not_live(self, line: FakeLine) -> None:
        """What stood there before we came; the next one is live."""
        line.verdict("pass")
        with Client(line.verdicts, line.control) as client:
            (old,) = messages(client, 1)
            line.verdict("fail")
            (new,) = messages(client, 1)
        assert told([old]) == [(1, False)]
        assert (new.message.seq, new.recovered) == (2, False)

    def test_a_live_message_is_no_longer_live_after_a_second(self, line: FakeLine, client: Client) -> None:
        """A handler that was busy for too long must not act on it."""
        line.verdict("pass")
        (event,) = messages(client, 1)
        assert event.live
        assert not Received(event.topic, event.message, event.body, event.received_at - 1.0).live

    def test_what_was_lost_is_recovered_in_order_and_not_live(self, line: FakeLine, client: Client) -> None:
        line.verdict()
        with line.losing():
            line.verdict()
            line.verdict()
        line.verdict()
        assert told(messages(client, 4)) == [(1, True), (2, False), (3, False), (4, True)]

    def test_a_lost_tail_is_recovered_after_the_next_heartbeat(self, line: FakeLine, client: Client) -> None:
        """No further part comes."""
        line.verdict()
        with line.losing():
            line.verdict()
        assert told(messages(client, 2)) == [(1, True), (2, False)]

    def test_without_a_journal_it_is_lost(self) -> None:
        with FakeLine(journal=False, heartbeat_s=FAST) as line, Client(line.verdicts, line.control) as client:
            be_heard(line, client)
            line.verdict()
            with line.losing():
                line.verdict()
            line.verdict()
            events = until(client, lambda event: isinstance(event, Received) and event.message.seq == 3)
            assert events[1] == Lost(TOPIC, line.boot_id, 2, 2)

    def test_with_nobody_at_the_control_socket_it_is_lost_within_a_second(self, line: FakeLine) -> None:
        with Client(line.verdicts, unused_endpoint()) as client:
            be_heard(line, client)
            line.verdict()
            with line.losing():
                line.verdict()
            line.verdict()
            messages(client, 1)
            before = time.monotonic()
            events = until(client, lambda event: isinstance(event, Received))
            assert time.monotonic() - before < 3  # 0.8 on a quiet machine
        assert events[0] == Lost(TOPIC, line.boot_id, 2, 2)

    def test_a_long_hole_is_fetched_page_by_page(self, line: FakeLine, client: Client) -> None:
        line.page = 50
        line.verdict()
        with line.losing():
            for _ in range(220):
                line.verdict()
        line.verdict()
        assert [event.message.seq for event in messages(client, 222)] == list(range(1, 223))
        line.await_request("replay", 5)

    def test_a_restart_is_told_and_the_old_boot_s_tail_recovered(self, line: FakeLine, client: Client) -> None:
        line.verdict()
        with line.losing():
            line.verdict()
        old = line.boot_id
        new = line.restart()
        line.verdict()
        events = until(client, lambda event: isinstance(event, Received) and event.message.boot_id == new)
        assert events[1:-1] == [Restarted(old, new), events[2]]
        assert told([events[2]]) == [(2, False)]
        assert events[-1].message.seq == 1

    def test_what_cannot_be_read_is_told_and_passed_over(self, line: FakeLine, client: Client) -> None:
        """Garbage, a newer schema, one frame, three, and a message under another topic's name."""
        body = line.verdict().model_dump_json().encode()
        messages(client, 1)
        bad = [
            (TOPIC.encode(), b"\xc1 nonsense"),
            (TOPIC.encode(), b'{"schema":"inspectd.verdict/9"}'),
            (b"verdict/one frame only",),
            (TOPIC.encode(), body, b"more"),
            (b"verdict/top/other/", body),
            (b"heartbeat/", b"{}"),
        ]
        for frames in bad:
            line.raw(*frames)
        line.verdict("fail")
        events = until(client, lambda event: isinstance(event, Received))
        assert [type(event) for event in events[:-1]] == [Unreadable] * len(bad)
        assert all("\n" not in event.why for event in events[:-1])
        assert client.unreadable == len(bad)
        assert events[-1].message.verdict == "fail"

    def test_a_slow_program_loses_nothing_and_holds_little(self, line: FakeLine) -> None:
        """Ten events fit; a hundred come; all are told in the end, and the heartbeat is heard all the time."""
        with Client(line.verdicts, line.control, queue_size=10) as client:
            line.await_subscriber("verdict/")
            for _ in range(100):
                line.verdict()
            assert client._inbox.room() == 0 or len(client._inbox._events) < 10
            assert len(client._inbox._events) <= 10 + 64
            got = [event.message.seq for event in messages(client, 100)]
        assert got == list(range(1, 101))

    def test_a_program_that_stood_still_takes_nothing_for_live(self, line: FakeLine) -> None:
        """Stopped (SIGSTOP) while verdicts come: afterwards they are told, and none is live, until the line is well."""
        program = f"""if True:
            import sys
            from inspectd.client import Client, Health, Received
            with Client({line.verdicts!r}, {line.control!r}) as client:
                for event in client:
                    if isinstance(event, Received):
                        print(event.message.seq, event.live, client.safe_to_run, flush=True)
                    elif isinstance(event, Health):
                        print(event.reason, flush=True)
        """
        with running(program) as (process, said):
            assert [said(), said()] == ["connecting\n", "None\n"]
            line.verdict()
            assert said() == "1 True True\n"
            process.send_signal(signal.SIGSTOP)
            line.verdict()
            line.verdict()
            time.sleep(1.2)  # it stands still: there is nothing to wait for
            process.send_signal(signal.SIGCONT)
            assert {said(), said(), said()} == {"silent\n", "2 False False\n", "3 False False\n"}
            assert said() == "None\n"
            line.verdict()
            assert said() == "4 True True\n"


class TestFailSafe:
    def test_connecting_then_well_then_closed(self, line: FakeLine) -> None:
        alarm = Alarm()
        with Client(line.verdicts, line.control, fail_safe=alarm) as client:
            assert alarm.next() == "connecting"
            assert alarm.next() is None
            assert client.safe_to_run
            assert client.alive
        assert alarm.next() == "closed"
        assert not client.safe_to_run

    def test_silence_is_told_within_a_second_of_the_last_heartbeat(self) -> None:
        """Even while the program is stuck in its handler, and while verdicts still come."""
        alarm, stuck = Alarm(), threading.Event()
        with FakeLine(heartbeat_s=FAST) as line, Client(line.verdicts, line.control, fail_safe=alarm) as client:
            handler = threading.Thread(target=lambda: [stuck.wait(30) for _ in client], daemon=True)
            handler.start()
            alarm.until(None)
            line.hang()
            last = time.monotonic()
            line.verdict()
            assert alarm.until("silent") - last < 1.0
            assert not client.alive
            assert not client.safe_to_run
            stuck.set()

    @pytest.mark.parametrize("state", ["fault", "starting", "busy"])
    def test_a_state_that_is_not_ready_is_told_at_its_heartbeat(self, line: FakeLine, state: Any) -> None:
        alarm = Alarm()
        with Client(line.verdicts, line.control, fail_safe=alarm) as client:
            alarm.until(None)
            line.set_state(state, "why")
            assert alarm.next() == f"{state}: why"
            assert client.alive
            assert not client.safe_to_run
            line.set_state("ready")
            assert alarm.next() is None

    def test_the_same_state_is_told_once(self, line: FakeLine) -> None:
        alarm = Alarm()
        with Client(line.verdicts, line.control, fail_safe=alarm, topics=("heartbeat/",)) as client:
            line.await_subscriber()
            for _ in range(5):
                line.beat()
                until(client, lambda event: isinstance(event, Received) and isinstance(event.message, Heartbeat))
        said = [alarm.next() for _ in range(alarm.calls.qsize())]
        assert said == ["connecting", None, "closed"]

    def test_one_that_raises_does_not_end_the_supervision(self, line: FakeLine) -> None:
        alarm = Alarm()

        def broken(reason: str | None) -> None:
            alarm(reason)
            raise RuntimeError("gate")

        with Client(line.verdicts, line.control, fail_safe=broken) as client:
            alarm.until(None)
            line.set_state("fault")
            assert alarm.next() == "fault"
            line.set_state("ready")
            assert alarm.next() is None
            line.verdict()
            assert messages(client, 1)

    def test_nobody_there_is_never_safe(self) -> None:
        alarm = Alarm()
        with Client(unused_endpoint(), unused_endpoint(), fail_safe=alarm) as client:
            assert alarm.next() == "connecting"
            assert client.receive(0.2) == Health("connecting")
            assert client.receive(0.1) is None
            assert not client.safe_to_run
        assert alarm.next() == "closed"

    def test_it_may_be_closed_from_its_own_callback(self, line: FakeLine) -> None:
        closed = threading.Event()

        def end(reason: str | None) -> None:
            if reason is None:
                client.close()
            if reason == "closed":
                closed.set()

        client = Client(line.verdicts, line.control, fail_safe=end)
        client.start()
        assert [event for event in client if isinstance(event, Health)][-1] == Health("closed")
        assert closed.is_set()
        client.close()

    def test_a_defect_of_the_client_is_no_silence(
        self, line: FakeLine, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The alarm, then an error for whoever listens or asks; nobody waits for ever."""

        def defect(now: float) -> None:
            raise RuntimeError("defect")

        monkeypatch.setattr(client._link._continuity, "tick", defect)
        until(client, lambda event: event == Health("failed"))
        with pytest.raises(InspectdError, match="defect"):
            client.receive(20)
        assert not client.safe_to_run
        with pytest.raises(ControlRefused):
            client.status()


class TestRequests:
    def test_a_trigger_is_accepted_and_its_verdict_follows(self, line: FakeLine, client: Client) -> None:
        accepted = client.trigger("top", "part 7", deadline_ms=200)
        (event,) = messages(client, 1)
        assert (event.message.part_id, event.message.trigger_id) == ("part 7", accepted.trigger_id)
        assert event.live

    def test_a_refusal_has_its_code(self, line: FakeLine, client: Client) -> None:
        with pytest.raises(ControlRefused) as caught:
            client.trigger("elsewhere", deadline_ms=200)
        assert caught.value.code == "unknown_camera"
        assert str(caught.value).startswith("unknown_camera: elsewhere")

    def test_what_no_daemon_would_take_is_not_sent(self, line: FakeLine, client: Client) -> None:
        for arguments in ({"camera": "a/b"}, {"camera": "top", "part_id": "x" * 1_000_000}):
            with pytest.raises(UsageError) as caught:
                client.trigger(**arguments, deadline_ms=100)
            assert len(str(caught.value)) < 200
        assert line.requests == []

    def test_no_answer_is_a_timeout_and_a_late_one_harmless(self, line: FakeLine, client: Client) -> None:
        line.answers["status"] = lambda request: None
        with pytest.raises(ControlTimeout, match="within"):
            client.status(timeout_s=0.1)
        line.answers.clear()
        assert client.status()["state"] == "ready"

    def test_a_trigger_for_nobody_is_not_kept_for_later(self, line: FakeLine, client: Client) -> None:
        """A daemon that starts afterwards must not inspect a part that has long passed."""
        line.stop()
        with pytest.raises(ControlTimeout):
            client.trigger("top", deadline_ms=100, timeout_s=0.2)
        line.restart("b00t-back")
        assert client.status()["boot_id"] == "b00t-back"
        assert [request.op for request in line.requests] == ["status"]

    def test_a_request_that_waited_for_the_client_itself_is_not_sent_late(self, line: FakeLine) -> None:
        """A handler keeps its thread busy."""
        entered, leave = threading.Event(), threading.Event()

        def fail_safe(reason: str | None) -> None:
            if reason == "fault: lamp":
                entered.set()
                leave.wait(20)

        with Client(line.verdicts, line.control, fail_safe=fail_safe) as client:
            be_heard(line, client)
            line.set_state("fault", "lamp")
            assert entered.wait(20)
            with pytest.raises(ControlTimeout):
                client.trigger("top", deadline_ms=100, timeout_s=0.05)
            leave.set()
            client.status()
        assert [request.op for request in line.requests] == ["status"]

    def test_a_timeout_counts_from_the_question(self) -> None:
        """The wait for somebody to send it to is part of it."""
        gone: list[Any] = []
        with zmq.Context() as context, requester(context, endpoint := unused_endpoint(), None) as asking:
            exchange = Exchange(asking, endpoint)
            for timeout_s in (0.5, 1.0):
                exchange.ask(StatusRequest(op="status"), timeout_s, 100.0, gone.append)
            exchange.turn(100.4)
            with context.socket(zmq.ROUTER) as line:
                line.bind(endpoint)
                assert asking.poll(20_000, zmq.POLLOUT)
                exchange.turn(100.6)
                assert len(gone) == 1
                assert line.poll(20_000)
                line.recv_multipart()
                exchange.turn(101.0)
                assert [str(each).split()[0] for each in gone] == ["nobody", "no"]
                assert line.poll(100) == 0

    def test_what_the_network_does_not_take_is_given_up_by_the_kernel(self, line: FakeLine, client: Client) -> None:
        """A trigger for a daemon whose cable is pulled does not arrive seconds later, when it is plugged in again."""
        client.status()
        port = int(line.control.rpartition(":")[2])
        assert limits_ms(port) == [1000]

    def test_every_request_and_a_reply_that_cannot_be_read(self, line: FakeLine, client: Client) -> None:
        line.verdict()
        assert client.replay(TOPIC).messages[0]["seq"] == 1
        assert client.recipe("bolts")["recipe"] == "bolts"
        assert client.recipe(None)["recipe"] is None
        assert client.reload()["restart"] == ["publish.bind"]
        assert client.challenge()["passed"] is True
        line.answers["trigger"] = lambda request: {"nothing": 1}
        with pytest.raises(ControlRefused, match="cannot be read"):
            client.trigger("top", deadline_ms=100)

    def test_many_threads_ask_at_once(self, line: FakeLine, client: Client) -> None:
        """Each gets its own answer."""
        got: dict[int, int] = {}
        line.verdict()

        def ask(number: int) -> None:
            got[number] = client.replay(TOPIC, number).model_dump()["next_seq"] or number

        line.answers["replay"] = lambda request: {
            "topic": TOPIC, "boot_id": "b", "messages": [], "missing": [], "next_seq": request.from_seq
        }  # fmt: skip
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert got == {number: number for number in range(1, 30)}

    def test_a_closed_client_refuses(self, line: FakeLine) -> None:
        client = Client(line.verdicts, line.control)
        with pytest.raises(ControlRefused, match="stopping"):
            client.status()
        client.start()
        client.close()
        with pytest.raises(ControlRefused, match="stopping"):
            client.status()
        assert until(client, lambda event: event == Health("closed"))
        assert client.receive() is None
        assert list(client) == []

    def test_the_control_socket_alone(self, line: FakeLine) -> None:
        with Control(line.control) as control:
            assert control.trigger("top", deadline_ms=100).trigger_id
            assert control.status()["boot_id"] == line.boot_id


class TestConnecting:
    @pytest.mark.parametrize(
        "endpoint",
        ["", "127.0.0.1:5556", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://127.0.0.1:70000", "http://x:1", "ipc://",
         "tcp://*:5556", "tcp://no-such-host.invalid:5556", f"tcp://{'a' * 70}:5556", "tcp://a b:1"],
    )  # fmt: skip
    def test_a_wrong_endpoint_is_one_line(self, endpoint: str) -> None:
        for make in (lambda: Client(endpoint).start(), lambda: Client(control=endpoint).start(),
                     lambda: Control(endpoint)):  # fmt: skip
            with pytest.raises(UsageError) as caught:
                make()
            assert str(caught.value).startswith(repr(endpoint))
            assert "\n" not in str(caught.value)

    def test_a_queue_without_places_is_refused(self) -> None:
        with pytest.raises(UsageError, match="queue_size"):
            Client(queue_size=0)

    def test_with_keys_the_stream_and_the_control_socket(self, tmp_path: Path) -> None:
        """And a client that believes in another daemon's key hears nothing and asks nothing."""
        server, server_secret = write_pair(tmp_path, "server")
        own, secret = write_pair(tmp_path, "client")
        pair = load_certificate(server_secret, secret=True)
        with FakeLine(heartbeat_s=FAST, server_key=(pair.public, pair.secret)) as line:
            with Client(line.verdicts, line.control, keys=Keys(server, secret)) as client:
                until(client, lambda event: event == Health(None))
                assert client.status()["state"] == "ready"
            with Client(line.verdicts, line.control, keys=Keys(own, secret)) as stranger:
                assert stranger.receive(1) == Health("connecting")
                assert stranger.receive(0.3) is None
                with pytest.raises(ControlTimeout, match="does it know this key"):
                    stranger.status(timeout_s=0.2)

    def test_a_key_that_cannot_be_used_is_one_line(self, tmp_path: Path) -> None:
        server, _ = write_pair(tmp_path, "server")
        own, _ = write_pair(tmp_path, "client")
        for keys in (Keys(tmp_path / "gone.key", own), Keys(server, own)):
            with pytest.raises(UsageError) as caught:
                Client(keys=keys).start()
            assert "\n" not in str(caught.value)

    def test_nothing_heavy_is_imported(self) -> None:
        program = (
            "import sys, inspectd.client, inspectd.client.tail; "
            "print([name for name in ('cv2', 'openvino', 'torch', 'av') if name in sys.modules])"
        )
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert found.stdout.strip() == "[]"

    def test_no_file_descriptor_is_left_behind(self, line: FakeLine) -> None:
        for number in range(4):
            if number == 1:
                before = descriptors()
            with Client(line.verdicts, line.control) as client:
                assert client.receive(5)
            with pytest.raises(UsageError):
                Client("nonsense").start()
        # The line's own sockets close theirs a little later.
        deadline = time.monotonic() + 10
        while descriptors() > before and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        assert descriptors() <= before


class TestAsync:
    def test_events_requests_and_the_end(self, line: FakeLine) -> None:
        """As with the one that waits: in order, recovered, asked, closed."""

        async def listen() -> list[tuple[int, bool]]:
            alarm = Alarm()
            async with AsyncClient(line.verdicts, line.control, fail_safe=alarm) as client:
                while (await client.receive()) != Health(None):
                    pass
                await asyncio.to_thread(line.verdict)
                with line.losing():
                    line.verdict()
                accepted = await client.trigger("top", deadline_ms=100)
                seen = []
                async for event in client:
                    if isinstance(event, Received):
                        seen.append((event.message.seq, event.recovered))
                        if event.message.trigger_id == accepted.trigger_id:
                            break
                with pytest.raises(ControlRefused):
                    await client.recipe("unknown")
                assert await client.receive(0.01) is None
                assert client.safe_to_run
            assert [event async for event in client] == [Health("closed")]
            return seen

        assert asyncio.run(listen()) == [(1, False), (2, True), (3, False)]

    def test_a_blocked_loop_does_not_keep_the_alarm_back(self, line: FakeLine) -> None:
        """A handler that never awaits; the heartbeat stops meanwhile."""
        alarm = Alarm()

        async def stuck() -> None:
            async with AsyncClient(line.verdicts, line.control, fail_safe=alarm):
                await asyncio.to_thread(alarm.until, None)
                line.pause_heartbeats()
                last = time.monotonic()
                assert alarm.until("silent") - last < 1.0  # waits without giving the loop back

        asyncio.run(stuck())

    def test_a_request_that_is_cancelled_harms_nobody(self, line: FakeLine) -> None:
        async def ask() -> None:
            async with AsyncClient(line.verdicts, line.control) as client:
                line.answers["status"] = lambda request: None
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await client.status()
                line.answers.clear()
                assert (await client.status())["state"] == "ready"

        asyncio.run(ask())


def test_what_comes_on_the_control_socket_unasked_is_passed_over() -> None:
    """No JSON, no object, an id that nobody gave."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")

    def misbehave() -> None:
        identity, body = router.recv_multipart()
        for garbage in (b"", b"[" * 100_000, b"7", b"[]", b'{"ok":true}', b'{"ok":true,"id":"other"}', b"\xff"):
            router.send_multipart([identity, garbage])
        router.send_multipart([identity, b"many", b"frames"])
        asked = body.decode().partition('"id":"')[2].partition('"')[0]
        router.send_multipart([identity, f'{{"ok":false,"id":"{asked}","error":7}}'.encode()])

    thread = threading.Thread(target=misbehave)
    thread.start()
    with Control(f"tcp://127.0.0.1:{port}") as control, pytest.raises(ControlRefused, match="internal"):
        control.status()
    thread.join(10)
    router.close(linger=0)
    context.term()


def test_the_example_of_the_documentation_runs(line: FakeLine) -> None:
    """As it stands there: opens for a live pass, shuts for anything else, and when the heartbeat stops."""
    page = (Path(__file__).parents[1] / "docs" / "client.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    program = example.replace("tcp://127.0.0.1:5556", line.verdicts).replace("tcp://127.0.0.1:5557", line.control)
    assert program.count(line.verdicts) == program.count(line.control) == 1
    line.verdict("pass")  # of before: nothing to act on
    with running(program) as (_, said):
        assert [said(), said()] == ["gate shut\n", "line stopped: connecting\n"]
        line.await_subscriber("verdict/")
        line.await_subscriber()
        line.beat()
        line.verdict("fail")
        assert said() == "gate shut\n"
        line.verdict("pass")
        assert said() == "gate open\n"
        with line.losing():
            line.verdict("fail")
        assert [said(), said()] == ["gate shut\n", f"{TOPIC}: 1 part(s) without an answer\n"]
        line.hang()
        assert [said(), said()] == ["gate shut\n", "line stopped: silent\n"]


@pytest.mark.soak
def test_a_subscriber_that_was_stopped_for_a_minute_misses_nothing(line: FakeLine) -> None:
    """Six thousand verdicts, most of them beyond what the daemon keeps for it; none is taken for live."""
    program = f"""if True:
        from inspectd.client import Client, Lost, Received
        with Client({line.verdicts!r}, {line.control!r}) as client:
            for event in client:
                if isinstance(event, Received):
                    print(event.message.seq, int(event.live), flush=True)
                elif isinstance(event, Lost):
                    print(event, flush=True)
    """
    with running(program) as (process, said):
        line.await_subscriber("verdict/")
        line.verdict()
        assert said() == "1 1\n"
        process.send_signal(signal.SIGSTOP)
        for number in range(6000):
            if number < 1000:
                line.verdict()
            else:
                with line.losing():
                    line.verdict()
            threading.Event().wait(0.01)
        process.send_signal(signal.SIGCONT)
        before = time.monotonic()
        assert [said() for _ in range(6000)] == [f"{seq} 0\n" for seq in range(2, 6002)]
        assert time.monotonic() - before < 30
