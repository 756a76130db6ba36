"""The Modbus bridge as a PLC meets it: a real Modbus client, and a stand-in for the daemon on real sockets."""

import asyncio
import itertools
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from bridge_loop import CAMERAS, LAYOUT, Bridge, until
from fake_line import FakeLine, unused_endpoint
from pymodbus.client import ModbusTcpClient
from structlog.testing import capture_logs

from inspectd.bridge import codes, modbus_map
from inspectd.bridge.modbus import MAX_CONNECTIONS, ModbusServer
from inspectd.client import Received
from inspectd.errors import UsageError
from inspectd.verdict.control_schema import ControlError

PASS, FAIL = codes.VERDICT_CODES["pass"], codes.VERDICT_CODES["fail"]
ILLEGAL_ADDRESS, ILLEGAL_VALUE = 2, 3
TOP, PART, LID, SIDE, EDGE = 1000, 1020, 1040, 2000, 2020
TRIGGER_COIL = 16


class Plc(ModbusTcpClient):
    """What a PLC does."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        super().__init__(host, port=int(port), timeout=5, retries=0)
        assert self.connect()

    def block(self, address, count=20):
        found = self.read_input_registers(address, count=count)
        assert not found.isError(), found
        return found.registers

    def roi(self, address):
        return named(modbus_map.ROI, self.block(address))

    def camera(self, address):
        return named(modbus_map.CAMERA, self.block(address))

    def line(self):
        return named(modbus_map.LINE, self.block(0))

    def bits(self, address, count):
        return self.read_discrete_inputs(address, count=count).bits[:count]

    def handshake(self):
        """ack, busy, done, error; the bits and the register say the same."""
        bits = self.bits(TRIGGER_COIL + 1, 4)
        return "".join(name for name, bit in zip("abde", bits, strict=True) if bit)


def named(registers, block):
    """The values of one request, by their names."""

    def value(register):
        words = block[register.offset : register.offset + register.words]
        return words[0] if len(words) == 1 else words[0] << 16 | words[1]

    return {register.name: value(register) for register in registers}


@pytest.fixture
def fake():
    with FakeLine(CAMERAS) as line:
        yield line


def serve(fake, **options):
    return Bridge(lambda line: ModbusServer(line, "127.0.0.1", 0), fake.verdicts, fake.control, **options)


@pytest.fixture
def bridge(fake):
    with serve(fake) as running:
        running.await_line(fake)
        yield running


@pytest.fixture
def plc(bridge):
    with Plc(bridge.address) as client:
        yield client


@pytest.fixture(scope="module")
def still():
    """A client of a bridge whose line does nothing; for tests that change nothing."""
    with FakeLine(CAMERAS) as line, serve(line) as running, Plc(running.address) as client:
        running.await_line(line)
        client.serving = running.address
        yield client


def test_a_verdict_reaches_its_registers(fake, plc):
    """Every register of a region, and nothing in the region beside it."""
    fake.verdict("fail", "top", "part", part_id="4000000000")
    found = until(lambda: (roi := plc.roi(PART))["results"] == 1 and roi)
    beat, age = found.pop("heartbeat"), found.pop("age_ms")
    assert found == {
        "verdict": FAIL, "reason": 0, "label": 2, "score": 990, "results": 1, "sequence": 1, "trigger_number": 0,
        "part_number": 4_000_000_000,
    }  # fmt: skip
    assert beat > 0
    assert age < 1000
    other = plc.roi(LID)
    assert (other["verdict"], other["reason"], other["results"], other["age_ms"]) == (0, 100, 0, 0xFFFF)


def test_a_part_drives_the_region_whose_layout_says_so(fake, plc):
    """Verdicts on single frames of it are not heard."""
    fake.verdict("fail", "side", "edge")
    fake.part("pass", "side", "edge")
    found = until(lambda: (roi := plc.roi(EDGE))["results"] == 1 and roi)
    assert (found["verdict"], found["label"], found["part_number"]) == (PASS, 1, 0)


def test_the_heartbeat_counts_in_every_block_while_inspectd_lives(fake, plc):
    """The line's, the camera's and the region's are one."""
    first = plc.block(0)[1]
    fake.beat()
    fake.beat()
    until(lambda: plc.block(0)[1] >= first + 2)
    block = plc.block(TOP, 60)
    assert block[0] == block[20] == block[40]


def test_lost_heartbeats_are_fail_safe_within_a_second(fake, plc):
    """Measured by the PLC, from the last heartbeat on: while verdicts still come."""
    fake.pause_heartbeats()
    fake.beat()
    begun = time.monotonic()
    shown = 0
    while (now := time.monotonic() - begun) < 1.0:
        fake.verdict("pass")
        block = plc.block(PART)
        if block[1] == PASS:
            shown, last = shown + 1, now
        elif now > 0.5:
            break
    assert shown > 3, "it was shown before"
    assert last < 1.0
    assert plc.roi(PART)["verdict"] == 0
    line = plc.line()
    assert (line["ready"], line["state"], line["reason"]) == (0, 0, 102)
    assert not any(plc.bits(0, 1))
    assert {plc.block(0)[1] for _ in range(20)} == {line["heartbeat"]}, "it stands still"


@pytest.mark.parametrize(("state", "code", "reason"), [("fault", 4, 105), ("busy", 3, 104), ("starting", 1, 103)])
def test_a_state_that_is_not_ready_is_fail_safe_at_once(fake, plc, state, code, reason):
    """And the line says which."""
    fake.verdict("pass")
    until(lambda: plc.roi(PART)["verdict"] == PASS)
    fake.set_state(state, "no light")
    until(lambda: plc.roi(PART)["verdict"] == 0)
    line = plc.line()
    assert (line["ready"], line["state"], line["reason"]) == (0, code, reason)
    fake.set_state("ready")
    until(lambda: plc.line()["ready"])
    assert plc.roi(PART)["verdict"] == 0, "what was there before does not come back"
    fake.verdict("pass")
    until(lambda: plc.roi(PART)["verdict"] == PASS)


def test_a_result_ages_and_expires(fake):
    """The age is counted when it is read; at --hold-ms the value is fail-safe."""
    with serve(fake, hold_ms=300) as bridge, Plc(bridge.address) as plc:
        bridge.await_line(fake)
        fake.verdict("pass")
        ages = []
        until(lambda: plc.roi(PART)["verdict"] == PASS)
        while (found := plc.roi(PART))["verdict"] == PASS:
            ages.append(found["age_ms"])
        assert ages == sorted(ages)
        assert ages[-1] < 300
        assert (found["reason"], found["age_ms"], found["results"], found["sequence"]) == (101, 0xFFFF, 1, 1)


def test_what_is_repeated_or_recovered_drives_nothing(fake):
    """A bridge that starts late gets the last values, and a gap is never filled with an old pass."""
    fake.verdict("pass")
    with serve(fake) as bridge, Plc(bridge.address) as plc:
        bridge.await_line(fake)
        until(lambda: plc.roi(PART)["sequence"] == 1)
        assert plc.roi(PART)["verdict"] == 0
        fake.verdict("pass")
        until(lambda: plc.roi(PART)["verdict"] == PASS)
        with fake.losing():
            fake.verdict("fail")
        fake.beat()  # tells that there is a newer one
        found = until(lambda: (roi := plc.roi(PART))["verdict"] == 0 and roi)
        assert (found["reason"], found["results"]) == (107, 2)
        fake.verdict("pass")
        assert until(lambda: (roi := plc.roi(PART))["verdict"] == PASS and roi)["results"] == 3


def test_a_result_that_came_as_a_repeat_only_is_counted(fake, plc):
    """The connection was gone for a moment; the part behind it does not take its place."""
    fake.verdict("pass")
    until(lambda: plc.roi(PART)["verdict"] == PASS)
    with fake.losing():
        fake.verdict("fail")
    fake.repeat("verdict/top/part/")
    found = until(lambda: (roi := plc.roi(PART))["results"] == 2 and roi)
    assert (found["verdict"], found["reason"]) == (0, 107)
    fake.verdict("pass")
    assert until(lambda: (roi := plc.roi(PART))["verdict"] == PASS and roi)["results"] == 3


def test_a_camera_whose_word_was_lost_is_asked_for(fake, plc):
    """It is ready again, and says so once; what does not come is fetched."""
    fake.status("top", "fault", "stall")
    until(lambda: plc.camera(TOP)["state"] == 4)
    with fake.losing():
        fake.status("top", "ready")
    until(lambda: plc.camera(TOP)["state"] == 2)
    fake.verdict("pass")
    until(lambda: plc.roi(PART)["verdict"] == PASS)


def test_what_was_asked_before_a_cameras_word_was_lost_is_no_answer(fake, bridge, plc):
    """The account under way may be the older one."""
    fake.status("top", "fault", "stall")
    until(lambda: plc.camera(TOP)["state"] == 4)
    old, asked, lost = fake._plain("status", None), [], asyncio.Event()
    fake.status("top", "ready")
    until(lambda: plc.camera(TOP)["state"] == 2)

    async def status():
        asked.append(1)
        if len(asked) > 1:
            return await real()
        with fake.losing():
            fake.status("top", "busy")
        fake.beat()
        lost.clear()
        await lost.wait()
        return old

    def note(event):
        note_lost(event)
        lost.set()

    real, bridge.line.client.status = bridge.line.client.status, status
    note_lost, bridge.line._lost = bridge.line._lost, note
    with fake.losing():
        fake.status("top", "busy")
    until(lambda: plc.camera(TOP)["state"] == 3)
    assert len(asked) == 2


def test_a_camera_at_fault_bars_its_own_regions_only(fake, plc):
    """Its state is in its block and its bit."""
    fake.status("top", "ready")
    fake.status("side", "ready")
    until(lambda: plc.bits(16 + 5, 1) == plc.bits(32 + 5, 1) == [True])
    fake.verdict("pass")
    fake.part("pass", "side", "edge")
    until(lambda: plc.roi(PART)["verdict"] == plc.roi(EDGE)["verdict"] == PASS)
    fake.status("top", "fault", "stall")
    found = until(lambda: (roi := plc.roi(PART))["verdict"] == 0 and roi)
    assert found["reason"] == 106
    assert (plc.camera(TOP)["state"], plc.bits(16 + 5, 1)) == (4, [False])
    assert plc.roi(EDGE)["verdict"] == PASS


# -- the trigger ----------------------------------------------------------------------------------------


def test_a_trigger_by_registers_goes_through_its_four_phases(fake, plc):
    """One request sets it, the results carry its number, and the reset ends it."""
    fake.on_trigger = None
    plc.write_coil(TRIGGER_COIL, False)
    assert plc.handshake() == ""
    plc.write_registers(TOP + 10, [1, 2, 500, 1])
    request = fake.await_request("trigger")
    assert (request.camera, request.part_id, request.deadline_ms) == ("top", "65538", 500)
    until(lambda: plc.handshake() == "ab")
    fake.verdict("pass", "top", "part", trigger_id="trigger-2", part_id="65538")
    until(lambda: plc.roi(PART)["trigger_number"] == 1)
    assert plc.handshake() == "ab", "the other region is missing"
    fake.verdict("fail", "top", "lid", trigger_id="trigger-2", part_id="65538")
    until(lambda: plc.handshake() == "ad")
    camera, part, lid = plc.camera(TOP), plc.roi(PART), plc.roi(LID)
    assert camera["handshake"] == 0b0101
    assert (camera["trigger_number"], camera["trigger_error"], camera["trigger"]) == (1, 0, 1)
    assert (part["verdict"], part["trigger_number"], part["part_number"]) == (PASS, 1, 65538)
    assert (lid["verdict"], lid["trigger_number"], lid["part_number"]) == (FAIL, 1, 65538)
    plc.write_register(TOP + 13, 0)
    assert plc.handshake() == ""


def test_a_trigger_by_coil_is_the_same_thing(fake, plc):
    """Part number and deadline by single registers, the coil like the register."""
    plc.write_coil(TRIGGER_COIL, False)
    plc.write_register(TOP + 11, 9)
    plc.write_register(TOP + 12, 700)
    for number in (1, 2):
        plc.write_coil(TRIGGER_COIL, True)
        until(lambda: plc.handshake() == "ad")
        assert plc.read_coils(TRIGGER_COIL, count=1).bits[0]
        found = plc.roi(PART)
        assert (found["verdict"], found["trigger_number"], found["part_number"]) == (PASS, number, 9)
        plc.write_coil(TRIGGER_COIL, False)
        assert plc.handshake() == ""
    assert fake.await_request("trigger", 2).deadline_ms == 700


def test_a_refused_trigger_says_why(fake, plc):
    """The daemon's code as a number, and the reset clears it."""

    def busy(request):
        raise ControlError("busy", "8 are under way")

    plc.write_coil(TRIGGER_COIL, False)
    fake.answers["trigger"] = busy
    plc.write_coil(TRIGGER_COIL, True)
    until(lambda: plc.handshake() == "e")
    assert plc.camera(TOP)["trigger_error"] == 9
    plc.write_coil(TRIGGER_COIL, False)
    assert (plc.handshake(), plc.camera(TOP)["trigger_error"]) == ("", 0)


def test_a_deadline_of_zero_is_refused_by_number(fake, plc):
    """What the daemon does not take is an error of the handshake."""
    plc.write_coil(TRIGGER_COIL, False)
    plc.write_registers(TOP + 10, [0, 1, 0, 1])
    until(lambda: plc.handshake() == "e")
    assert plc.camera(TOP)["trigger_error"] == 7


def test_a_result_that_never_comes_ends_in_error(fake, plc):
    """At the deadline and a grace; done never shows."""
    fake.on_trigger = None
    plc.write_coil(TRIGGER_COIL, False)
    plc.write_registers(TOP + 10, [0, 1, 50, 1])
    seen = set()
    until(lambda: seen.add(plc.handshake()) or "ae" in seen)
    assert seen <= {"b", "ab", "ae"}
    assert plc.camera(TOP)["trigger_error"] == 101


def test_a_trigger_while_nothing_is_safe_is_an_error_and_never_sent(fake, bridge, plc):
    """And one that is under way ends when the line stops being safe."""
    fake.on_trigger = None
    plc.write_coil(TRIGGER_COIL, False)
    plc.write_registers(TOP + 10, [0, 1, 5000, 1])
    until(lambda: plc.handshake() == "ab")
    fake.set_state("fault")
    until(lambda: plc.handshake() == "ae")
    assert plc.camera(TOP)["trigger_error"] == 102
    plc.write_coil(TRIGGER_COIL, False)
    plc.write_coil(TRIGGER_COIL, True)
    assert plc.handshake() == "e"
    bridge.run(bridge.line.client.status())  # whatever was asked before has arrived with it
    assert len([each for each in fake.requests if each.op == "trigger"]) == 1


@pytest.mark.parametrize("how", [{"recovered": True}, {"replayed": True}, {"received_at": -5.0}])
def test_a_result_that_is_not_live_answers_no_trigger(bridge, fake, how):
    """Recovered, repeated, or read too late: it is no result, neither for a handshake nor for an event."""
    live = fake.verdict("pass", trigger_id="t")
    until(lambda: bridge.run(shown(bridge)) == PASS)
    message = live.model_copy(update={"seq": live.seq + 1, "replayed": how.get("replayed", False)})
    received_at = time.monotonic() + how.get("received_at", 0.0)
    event = Received("verdict/top/part/", message, b"", received_at, how.get("recovered", False))

    async def take():
        return bridge.line.received(event)

    assert bridge.run(take()) is None
    assert not bridge.run(shown(bridge))


async def shown(bridge):
    """Whether anything is, at this moment."""
    return bridge.line.image.roi("top", "part", time.monotonic()).verdict


def test_a_trigger_left_set_over_a_restart_of_the_bridge_is_not_carried_out(fake, plc):
    """The first write of a 1 to a bridge that has seen no 0."""
    plc.write_coil(TRIGGER_COIL, True)
    assert (plc.handshake(), plc.camera(TOP)["trigger_error"]) == ("e", 103)
    assert not [each for each in fake.requests if each.op == "trigger"]


def test_regions_that_the_recipe_does_not_judge_are_not_waited_for(fake):
    """The daemon's account of itself says which there are."""
    status = fake._plain("status", None)
    status["cameras"][0]["rois"] = [{"name": "part", "model": "m"}]
    fake.answers["status"] = lambda request: status
    fake.cameras["top"] = ("part",)  # answers triggers for no other
    with serve(fake) as bridge, Plc(bridge.address) as plc:
        bridge.await_line(fake)
        until(lambda: bridge.line.handshakes["top"].rois == {"part"})
        plc.write_coil(TRIGGER_COIL, False)
        plc.write_registers(TOP + 10, [0, 5, 1000, 1])
        until(lambda: plc.handshake() == "ad")
        assert (plc.roi(PART)["verdict"], plc.roi(LID)["verdict"]) == (PASS, 0)


# -- the protocol ---------------------------------------------------------------------------------------


def test_a_request_never_sees_half_of_an_update(fake, plc):
    """300 updates whose fields all follow from the number, read by a client that does nothing but read."""
    stop = threading.Event()
    kinds = ["pass", "fail"]

    def publish():
        for number in itertools.count(1):
            if stop.is_set():
                return
            fake.verdict(
                kinds[number % 2],
                part_id=str(number),
                score=(number % 1000) / 1000,
                label=["good", "scratch"][number % 2],
            )

    thread = threading.Thread(target=publish)
    thread.start()
    seen = set()
    try:
        while len(seen) < 300:
            found = plc.roi(PART)
            number = found["sequence"]
            if number == 0:
                continue
            seen.add(number)
            expected = (number, (PASS, FAIL)[number % 2], number % 2 + 1, number % 1000, number)
            assert (
                found["part_number"],
                found["verdict"],
                found["label"],
                found["score"],
                found["results"],
            ) == expected
    finally:
        stop.set()
        thread.join()


def test_holding_and_input_registers_and_all_units_are_one(still):
    """Function codes 3 and 4, 1 and 2, any unit id."""
    assert still.read_holding_registers(TOP + 2, count=4).registers == still.block(TOP + 2, 4)
    assert still.read_input_registers(6, count=1, device_id=99).registers == [LAYOUT.fingerprint]
    assert still.read_coils(0, count=1).bits[0] == still.bits(0, 1)[0] is True


@pytest.mark.parametrize(
    ("address", "count"), [(19, 2), (20, 1), (999, 2), (1060, 1), (1059, 2), (3000, 1), (65535, 1)]
)
def test_reading_where_nothing_is_gets_an_exception(still, address, count):
    """Behind the line's block, behind a camera's last region, behind the last camera."""
    assert still.read_input_registers(address, count=count).exception_code == ILLEGAL_ADDRESS


@pytest.mark.parametrize(
    ("address", "values"),
    [(0, [1]), (PART + 1, [PASS]), (TOP + 9, [0, 0]), (TOP + 13, [0, 0]), (3010, [1]), (TOP + 10, [0, 0, 0, 0, 0])],
)
def test_nothing_but_the_trigger_can_be_written(still, address, values):
    """Least of all a verdict; and a request that is refused has written nothing."""
    before = still.block(TOP, 60)[1:]
    assert still.write_registers(address, values).exception_code == ILLEGAL_ADDRESS
    assert [each for each in still.block(TOP, 60)[1:] if each not in before] in ([], [still.block(TOP)[0]])
    assert still.camera(TOP)["part_number"] == 0


def test_a_trigger_register_takes_0_and_1(still):
    """Anything else is an illegal value, and the registers beside it stay as they are."""
    assert still.write_registers(TOP + 10, [0, 7, 500, 2]).exception_code == ILLEGAL_VALUE
    assert still.camera(TOP)["part_number"] == 0


def test_coils_that_are_no_triggers_cannot_be_written(still):
    """Nor any beside them in the same request."""
    assert still.write_coils(TRIGGER_COIL, [True, True]).exception_code == ILLEGAL_ADDRESS
    assert still.write_coil(0, True).exception_code == ILLEGAL_ADDRESS
    assert still.write_coil(16 * 3, True).exception_code == ILLEGAL_ADDRESS
    assert not any(still.bits(TRIGGER_COIL, 5))


def test_requests_that_come_in_one_piece_are_each_answered(still):
    """Two reads in one segment, as a PLC sends them that does not wait."""
    host, _, port = still.serving.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"".join(struct.pack(">HHHBBHH", number, 0, 6, 1, 4, 5, number) for number in (1, 2)))
        stream = raw.makefile("rb")
        answers = [stream.read(9 + 2 * number) for number in (1, 2)]
    assert [struct.unpack(">H", answer[:2]) for answer in answers] == [(1,), (2,)]
    assert struct.unpack(">HH", answers[1][9:]) == (len(LAYOUT.cameras), LAYOUT.fingerprint)


def test_garbage_ends_nothing(still):
    """Bytes that are no Modbus, half a request, and fifty connections that say nothing."""
    host, _, port = still.serving.rpartition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(50)]
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 300,
        b"\0\1\0\0\0\6\1\4\0",
        struct.pack(">HHHBBHH", 1, 0, 6, 1, 99, 0, 1),
    ):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(data)
    assert still.line()["map_version"] == codes.MAP_VERSION
    for each in idle:
        each.close()
    assert still.line()["map_version"] == codes.MAP_VERSION


def test_connections_are_bounded(still):
    """One too many is closed at once, and who is there already is served."""
    host, _, port = still.serving.rpartition(":")
    held = [socket.create_connection((host, int(port)), timeout=5) for _ in range(MAX_CONNECTIONS)]
    assert held[-1].recv(1) == b""
    assert still.line()["map_version"] == codes.MAP_VERSION
    for each in held:
        each.close()


def test_what_a_plc_does_wrong_for_ever_is_one_line_of_the_log(bridge, caplog):
    """One of each kind in ten seconds, with the request; and none of pymodbus."""
    host, _, port = bridge.address.rpartition(":")
    too_long = struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, 1000, 126)
    with capture_logs() as lines, ExitStack() as held:

        def connected():
            return held.enter_context(socket.create_connection((host, int(port)), timeout=5))

        for _ in range(5):
            garbage = connected()
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert garbage.recv(1) == b""
        for plc in [connected() for _ in range(MAX_CONNECTIONS)]:
            plc.sendall(too_long)
            assert plc.recv(20)[7:] == bytes([0x83, ILLEGAL_VALUE])
        for _ in range(5):
            assert connected().recv(1) == b""
    told = [line for line in lines if not line["event"].startswith("line_")]
    assert sorted(line["event"] for line in told) == ["bad_request", "no_modbus", "too_many_connections"]
    assert "03 03 e8 00 7e" in [line.get("request") for line in told]
    assert not caplog.records


def test_a_bridge_without_a_daemon_serves_fail_safe_and_connects_later():
    """Started first, in whatever order the machine boots."""
    verdicts, control = unused_endpoint(), unused_endpoint()
    fake = FakeLine(CAMERAS)
    fake.verdicts, fake.control = verdicts, control
    with serve(fake) as bridge, Plc(bridge.address) as plc:
        assert (plc.line()["ready"], plc.line()["reason"], plc.roi(PART)["verdict"]) == (0, 102, 0)
        with fake:
            until(lambda: plc.line()["ready"])
            fake.verdict("pass")
            until(lambda: plc.roi(PART)["verdict"] == PASS)


def test_a_port_that_is_taken_is_a_clear_line(fake):
    """Exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--bind 127.0.0.1:{port}: address already in use"):
            Bridge(lambda line: ModbusServer(line, "127.0.0.1", port), fake.verdicts, fake.control).__enter__()


@pytest.mark.soak
@pytest.mark.parametrize("stopped_s", [0.3, 1.5, 4.0])
def test_a_bridge_that_stood_still_shows_no_pass_that_waited_for_it(fake, tmp_path, stopped_s):
    """SIGSTOP, as a suspended machine or a starved one; passes and heartbeats wait in its buffers, reads as well."""
    layout = tmp_path / "layout.toml"
    layout.write_text(LAYOUT.to_toml())
    command = [sys.executable, "-m", "inspectd", "bridge", "modbus", "--layout", layout, "--bind", "127.0.0.1:0"]
    ends = ["--verdicts", fake.verdicts, "--control", fake.control, "--hold-ms", "250"]
    with subprocess.Popen([*command, *ends], stderr=subprocess.PIPE, text=True) as process:
        try:
            log = iter(process.stderr.readline, "")
            address = next(each["address"] for each in map(json.loads, log) if each["event"] == "bridge_ready")
            with Plc(address) as plc:
                until(lambda: plc.line()["ready"])
                fake.verdict("pass")
                until(lambda: plc.roi(PART)["verdict"] == PASS)
                process.send_signal(signal.SIGSTOP)
                for _ in range(20):
                    fake.verdict("pass")
                time.sleep(stopped_s)  # the passes are older than --hold-ms from here on
                process.send_signal(signal.SIGCONT)
                until(lambda: no_pass(plc.roi(PART))["sequence"] == 21)
                until(lambda: plc.line()["ready"])
                fake.verdict("pass")
                until(lambda: plc.roi(PART)["verdict"] == PASS)
        finally:
            process.kill()


def no_pass(roi):
    assert roi["verdict"] != PASS, roi
    return roi
