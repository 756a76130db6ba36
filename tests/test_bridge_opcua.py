"""The OPC UA bridge as a SCADA system meets it: a real OPC UA client, and a stand-in for the daemon on real sockets."""

import asyncio
import datetime as dt
import functools
import itertools
import logging
import os
import socket
import threading
import time

import pytest
from asyncua import Client, ua
from asyncua.crypto.permission_rules import UserRole
from bridge_loop import CAMERAS, Bridge, until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fake_line import FakeLine

from inspectd.bridge import codes, opcua_tree
from inspectd.bridge.opcua import OpcUaServer
from inspectd.bridge.opcua_security import ReadersOnly, Security
from inspectd.errors import UsageError
from inspectd.verdict.control_schema import ControlError

PASS = codes.VERDICT_CODES["pass"]
PART = "Cameras.top.Regions.part"
EDGE = "Cameras.side.Regions.edge"

logging.getLogger("asyncua").setLevel(logging.CRITICAL)


class Scada:
    """A client with its own event loop; what it is told lands in lists."""

    def __init__(self, bridge, **options):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._client = Client(bridge.address, timeout=10)
        self._options = options
        self._subscriptions = []
        self.events, self.changes = [], []

    def __enter__(self):
        self._thread.start()
        try:
            self.run(self._connect())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_):
        self.run(self._client.disconnect())
        self._end()

    def _end(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    async def _connect(self):
        if "security" in self._options:
            await self._client.set_security_string(self._options["security"])
            self._client.application_uri = "urn:scada"
        if "user" in self._options:
            self._client.set_user(self._options["user"])
            self._client.set_password("admin")
        await self._client.connect()
        self.namespace = await self._client.get_namespace_index(opcua_tree.NAMESPACE)

    def node(self, path=""):
        return self._client.get_node(f"ns={self.namespace};s={'.'.join(filter(None, ['VisionSystem', path]))}")

    def data(self, path):
        return self.run(self.node(path).read_data_value(raise_on_bad_status=False))

    def value(self, path):
        return self.data(path).Value.Value

    def roi(self, path):
        """All variables of a region by one request: {name: (value, status)}."""

        async def read():
            nodes = [self.node(f"{path}.{each.name}") for each in opcua_tree.ROI]
            return await self._client.uaclient.read_attributes([each.nodeid for each in nodes], ua.AttributeIds.Value)

        found = zip(opcua_tree.ROI, self.run(read()), strict=True)
        return {each.name: (data.Value.Value, data.StatusCode.name) for each, data in found}

    def call(self, path, method, *arguments):
        return self.run(self.node(path).call_method(f"{self.namespace}:{method}", *arguments))

    def subscribe(self, *paths, events=()):
        async def begin():
            subscription = await self._client.create_subscription(20, self)
            for path in paths:
                await subscription.subscribe_data_change(self.node(path))
            for where, kind in events:
                types = await self._client.nodes.base_event_type.get_child([f"{self.namespace}:{kind}"])
                await subscription.subscribe_events(where, types)

            self._subscriptions.append(subscription)

        self.run(begin())

    def unsubscribe(self):
        while self._subscriptions:
            self.run(self._subscriptions.pop().delete())

    def event_notification(self, event):
        self.events.append(event)

    def datachange_notification(self, node, value, data):
        self.changes.append((value, data.monitored_item.Value.StatusCode.name))


@pytest.fixture(scope="module")
def line():
    with FakeLine(CAMERAS) as running:
        yield running


@pytest.fixture(scope="module")
def bridge(line):
    with Bridge(lambda each: OpcUaServer(each, "127.0.0.1", 0, None), line.verdicts, line.control) as running:
        yield running


@pytest.fixture
def fake(line, bridge):
    """Well again, whatever the last test did to it, and without a result that is shown."""
    line.answers.clear()
    line.requests.clear()
    line.resume()
    line.set_state("starting")
    until(lambda: not bridge.safe())
    line.set_state("ready")
    until(bridge.safe)
    bridge.line.image.hold_ms = 60_000
    return line


@pytest.fixture(scope="module")
def connected(bridge):
    with Scada(bridge) as client:
        yield client


@pytest.fixture
def scada(connected):
    connected.events, connected.changes = [], []
    yield connected
    connected.unsubscribe()


def test_a_verdict_reaches_its_variables_and_subscribers(fake, scada):
    """Every variable of its region, with a good status, and a data change."""
    scada.subscribe(f"{PART}.Verdict")
    until(lambda: scada.changes)
    sent = fake.verdict("fail", part_id="p1", trigger_id="t1", recipe="r1")
    until(lambda: ("fail", "Good") in scada.changes)
    found = scada.roi(PART)
    assert {status for _, status in found.values()} == {"Good"}
    assert found.pop("Results")[0] >= 1
    captured = found.pop("CapturedAt")[0]
    assert captured == dt.datetime.fromisoformat(sent.captured_at)
    assert {name: value for name, (value, _) in found.items()} == {
        "VerdictCode": codes.VERDICT_CODES["fail"], "Reason": "none", "ReasonCode": 0, "Sequence": sent.seq,
        "Verdict": "fail", "Label": "scratch", "LabelIndex": 2, "Score": 0.99, "PartId": "p1", "TriggerId": "t1",
        "Model": "m0de1", "Recipe": "r1",
    }  # fmt: skip


def test_each_result_is_one_event_with_all_its_fields(fake, scada):
    """At our node and at the server's; repeats are none."""
    kind = opcua_tree.RESULT_EVENT
    scada.subscribe(events=[(scada.node(), kind)])
    sent = fake.verdict("pass", part_id="p1")
    fake.repeat("verdict/top/part/")
    fake.verdict("no_result", "top", "lid", reason="stale")
    fake.part("fail", "side", "edge")
    until(lambda: len(scada.events) == 3)
    first, second, third = scada.events
    assert {each.name: getattr(first, each.name) for each in opcua_tree.RESULT_FIELDS} == {
        "Camera": "top", "Region": "part", "VerdictCode": PASS, "Verdict": "pass", "Reason": "none", "ReasonCode": 0,
        "Label": "good", "LabelIndex": 1, "Score": 0.99, "PartId": "p1", "TriggerId": "", "Sequence": sent.seq,
        "BootId": fake.boot_id, "CapturedAt": dt.datetime.fromisoformat(sent.captured_at),
        "PublishedAt": dt.datetime.fromisoformat(sent.published_at), "Model": "m0de1", "Config": "c0nf1g",
        "Recipe": "",
    }  # fmt: skip
    assert (first.Severity, first.Message.Text, first.SourceName) == (100, "top/part: pass", "VisionSystem")
    assert (second.Verdict, second.Reason, second.Severity) == ("no_result", "stale", 500)
    assert (third.Camera, third.Region, third.Verdict, third.Severity) == ("side", "edge", "fail", 700)
    scada.subscribe(events=[(scada._client.nodes.server, kind)])
    fake.verdict("pass")
    until(lambda: [event.SourceName for event in scada.events[3:]].count("Server") == 1)


def test_lost_heartbeats_are_fail_safe_within_a_second_for_a_subscriber(fake, scada):
    """Told, not asked: the status of the result goes bad, the code to 0, and Ready to false."""
    scada.subscribe(f"{PART}.Verdict", events=[(scada.node(), opcua_tree.READY_EVENT)])
    fake.pause_heartbeats()
    fake.verdict("pass")
    until(lambda: scada.changes[-1:] == [("pass", "Good")])
    fake.beat()
    begun = time.monotonic()
    until(lambda: scada.changes[-1] != ("pass", "Good"))
    assert time.monotonic() - begun < 1.5, "1 s, and the subscription's interval, and a busy machine"
    assert scada.changes[-1] == (None, "BadNoCommunication")
    until(lambda: scada.events)
    assert (scada.events[0].Ready, scada.events[0].Reason, scada.events[0].State) == (False, "silent", "unknown")
    found = scada.roi(PART)
    assert found["VerdictCode"] == (0, "Good")
    assert found["Reason"] == ("silent", "Good")
    assert {found[each.name] for each in opcua_tree.ROI if each.guarded} == {(None, "BadNoCommunication")}
    assert scada.value("Ready") is False
    fake.resume()
    until(lambda: scada.value("Ready"))
    assert scada.roi(PART)["Verdict"] == (None, "BadWaitingForInitialData"), "the old pass does not come back"


@pytest.mark.parametrize(("state", "status"), [("fault", "BadDeviceFailure"), ("busy", "BadOutOfService")])
def test_a_state_that_is_not_ready_is_fail_safe_and_told(fake, scada, state, status):
    """With inspectd's own words."""
    fake.verdict("pass")
    until(lambda: scada.value(f"{PART}.VerdictCode") == PASS)
    fake.set_state(state, "the lamp is dark")
    until(lambda: scada.value("State") == state)
    assert scada.value("Detail") == "the lamp is dark"
    found = scada.roi(PART)
    assert (found["VerdictCode"][0], found["Verdict"]) == (0, (None, status))


def test_a_result_that_expires_goes_bad_by_itself(fake, scada, bridge):
    """Nobody has to ask and nothing has to be heard: the subscriber is told, long before silence is."""
    bridge.line.image.hold_ms = 200
    fake.pause_heartbeats()
    fake.beat()
    fake.verdict("pass")
    scada.subscribe(f"{PART}.VerdictCode", f"{PART}.Verdict")
    until(lambda: (PASS, "Good") in scada.changes)
    until(lambda: scada.changes[-2:] == [(0, "Good"), (None, "BadWaitingForInitialData")])
    assert scada.value(f"{PART}.Reason") == "expired"


def test_one_request_never_sees_half_of_an_update(fake, scada):
    """Updates whose fields all follow from the number."""
    stop = threading.Event()

    def publish():
        for number in itertools.count(fake.verdict("fail").seq + 1):
            if stop.wait(0.003):
                return
            fake.verdict("pass", part_id=str(number), trigger_id=f"t{number}")

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        seen = set()
        while len(seen) < 50:
            found = scada.roi(PART)
            if found["VerdictCode"][0] == PASS:
                number = found["Sequence"][0]
                seen.add(number)
                assert (found["PartId"][0], found["TriggerId"][0]) == (str(number), f"t{number}")
    finally:
        stop.set()
        thread.join()


# -- methods --------------------------------------------------------------------------------------------


def test_a_trigger_is_accepted_and_its_results_come_as_events(fake, scada):
    """One per region, with the id that the method gave."""
    scada.subscribe(events=[(scada.node(), opcua_tree.RESULT_EVENT)])
    trigger_id, accepted_at, deadline_at = scada.call("Cameras.top", "Trigger", "p7", 500.0)
    assert (deadline_at - accepted_at).total_seconds() == pytest.approx(0.5, abs=1e-5)
    until(lambda: len(scada.events) == 2)
    assert {(each.Region, each.TriggerId, each.PartId) for each in scada.events} == {
        ("part", trigger_id, "p7"),
        ("lid", trigger_id, "p7"),
    }
    request = fake.await_request("trigger")
    assert (request.camera, request.part_id, request.deadline_ms) == ("top", "p7", 500)


def test_a_recipe_is_selected_by_name(fake, scada):
    """Empty is none; what is in force comes back."""
    assert scada.call("", "SelectRecipe", "bolts") == ["bolts", "c0nf1g"]
    assert scada.call("", "SelectRecipe", "") == ["", "c0nf1g"]
    assert [each.name for each in fake.requests if each.op == "recipe"] == ["bolts", None]
    with pytest.raises(ua.uaerrors.BadNotFound):
        scada.call("", "SelectRecipe", "unknown")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ((), "BadArgumentsMissing"),
        (("p", 500.0, 1.0), "BadTooManyArguments"),
        (("p", "500"), "BadTypeMismatch"),
        ((["p", "q"], 500.0), "BadTypeMismatch"),
        (("p" * 129, 500.0), "BadInvalidArgument"),
        (("p", 0.0), "BadOutOfRange"),
        (("p", 3_600_000.0), "BadOutOfRange"),
        (("p", float("nan")), "BadInvalidArgument"),
    ],
)
def test_a_call_with_bad_arguments_is_refused_by_its_status(fake, scada, arguments, status):
    """And the server goes on."""
    with pytest.raises(getattr(ua.uaerrors, status)):
        scada.call("Cameras.top", "Trigger", *arguments)


@pytest.mark.parametrize(
    ("code", "status"),
    [("busy", "BadTooManyOperations"), ("duplicate", "BadEntryExists"), ("forbidden", "BadUserAccessDenied"),
     ("not_triggered", "BadInvalidState"), ("internal", "BadInternalError")],
)  # fmt: skip
def test_a_refusal_of_the_daemon_is_a_status(fake, scada, code, status):
    """A status each."""

    def refuse(request):
        raise ControlError(code, "no")

    fake.answers["trigger"] = refuse
    with pytest.raises(getattr(ua.uaerrors, status)):
        scada.call("Cameras.top", "Trigger", "p", 500.0)


def test_a_trigger_while_nothing_is_safe_is_refused_and_never_sent(fake, scada):
    """As the handshake of Modbus does it."""
    fake.set_state("fault")
    until(lambda: not scada.value("Ready"))
    with pytest.raises(ua.uaerrors.BadInvalidState):
        scada.call("Cameras.top", "Trigger", "p", 500.0)
    assert not [each for each in fake.requests if each.op == "trigger"]


# -- who may do what ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"user": "admin"}])
def test_nobody_can_write_into_the_tree(fake, bridge, options):
    """Nor call himself an administrator, nor add or delete nodes."""
    refused = (ua.uaerrors.BadUserAccessDenied, ua.uaerrors.BadNotWritable, ua.uaerrors.BadIdentityTokenRejected)
    try:
        with Scada(bridge, **options) as scada:
            node = scada.node(f"{PART}.VerdictCode")
            with pytest.raises(refused):
                scada.run(node.write_value(ua.Variant(PASS, ua.VariantType.UInt16)))
            with pytest.raises((*refused, ConnectionError, TimeoutError, asyncio.TimeoutError)):
                scada.run(asyncio.wait_for(scada._client.delete_nodes([node]), 0.5))
            assert scada.value(f"{PART}.VerdictCode") == 0
    except refused:
        assert options, "an anonymous client may read"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Of (folder, name, uri): NAME.der and NAME.pem, made once."""
    base = tmp_path_factory.mktemp("certificates")
    return functools.cache(lambda folder, name, uri, days=1: certify(base / folder, name, uri, days))


def certify(folder, name, uri, days):
    """A self-signed certificate with its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - dt.timedelta(days=2)).not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    certificate, private = folder / f"{name}.der", folder / f"{name}.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.DER))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private


@pytest.mark.soak
def test_with_certificates_only_known_clients_connect_and_all_is_encrypted(line, certificates, monkeypatch):
    """A stranger, a client without security, and one whose certificate was taken out are refused."""
    certificate, key = certificates("own", "server", "urn:inspectd:test")
    known, known_key = certificates("leaving", "leaving", "urn:scada")
    stranger, stranger_key = certificates("strange", "strange", "urn:scada")
    security = Security(certificate, key, known.parent)

    def make(each):
        return OpcUaServer(each, "127.0.0.1", 0, security)

    with Bridge(make, line.verdicts, line.control) as bridge:

        def connect(own, own_key):
            policy = f"Basic256Sha256,SignAndEncrypt,{own},{own_key},{certificate}"
            with Scada(bridge, security=policy) as scada:
                return scada.value("MapVersion")

        assert connect(known, known_key) == codes.MAP_VERSION
        with pytest.raises(ua.uaerrors.BadUserAccessDenied):
            connect(stranger, stranger_key)
        kept = known.rename(key.with_name("kept.der"))
        with pytest.raises(ua.uaerrors.BadUserAccessDenied):
            connect(kept, known_key)
        # asyncua's own client would give up by itself, because no such endpoint is offered.
        monkeypatch.setattr(Client, "find_endpoint", staticmethod(lambda endpoints, *_: endpoints[0]))
        with pytest.raises(ua.UaError), Scada(bridge):
            pass


def test_only_a_certificate_that_lies_in_the_folder_now_and_is_valid_today_is_trusted(certificates, tmp_path):
    """What decides about each connection; the connections themselves are a test of `make test-soak`."""
    known, key = certificates("known", "known", "urn:scada")
    old, _ = certificates("old", "old", "urn:scada", days=-1)
    users = ReadersOnly(Security(known, key, tmp_path))
    (tmp_path / "known.der").write_bytes(known.read_bytes())
    (tmp_path / "old.der").write_bytes(old.read_bytes())
    (tmp_path / "broken.pem").write_bytes(b"-----BEGIN nothing")
    os.mkfifo(tmp_path / "aside.pem")
    assert users.get_user(None, certificate=known.read_bytes()).role is UserRole.User
    assert users.get_user(None, "admin", "admin", known.read_bytes()).role is UserRole.User
    for nobody in (None, b"", b"\0" * 1000, old.read_bytes()):
        assert users.get_user(None, certificate=nobody) is None
    (tmp_path / "known.der").unlink()
    assert users.get_user(None, certificate=known.read_bytes()) is None


def test_certificates_that_cannot_be_used_are_a_clear_line(certificates, tmp_path):
    """Each file by its name, before anything is begun."""
    own, key = certificates("own", "server", "urn:inspectd:test")
    _, other_key = certificates("strange", "strange", "urn:scada")
    garbage, absent = tmp_path / "no.der", tmp_path / "absent"
    garbage.write_bytes(b"no")
    pipe, huge = tmp_path / "pipe.der", tmp_path / "huge.der"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    for certificate, private, clients, message in [
        (garbage, key, tmp_path, r"no\.der: is no certificate"),
        (absent, key, tmp_path, r"certificate .*absent: no such file"),
        (pipe, key, tmp_path, r"certificate .*pipe\.der: is no plain file"),
        (own, huge, tmp_path, r"--private-key .*huge\.der: is longer than 65,536 bytes"),
        (own, garbage, tmp_path, r"--private-key .*no\.der: is no unencrypted private key"),
        (own, absent, tmp_path, r"--private-key .*absent: no such file"),
        (own, other_key, tmp_path, r"--private-key .*strange\.pem: is not the key of .*server\.der"),
        (own, key, absent, r"--clients .*absent: no such folder"),
    ]:
        with pytest.raises(UsageError, match=message):
            Security(certificate, private, clients).check()


def test_a_port_that_is_taken_is_a_clear_line(line):
    """Found before the tree is built."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--bind 127.0.0.1:{port}: address already in use"):
            Bridge(lambda each: OpcUaServer(each, "127.0.0.1", port, None), line.verdicts, line.control).__enter__()
