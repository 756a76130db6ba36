"""Keys and rights over real sockets and real files: strangers, readers, revoked and new clients, broken key files."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
import zmq
import zmq.auth
from line_sockets import Keys, Line, Peer, serving

from inspectd import cli
from inspectd.config import SecurityConfig
from inspectd.errors import ConfigError, UsageError
from inspectd.verdict import access as access_module
from inspectd.verdict.connections import Connections
from inspectd.verdict.keyring import Client, Keyring
from inspectd.verdict.keys import load_certificate, write_pair
from inspectd.workers import Deadline

STATUS = {"op": "status"}
COMMANDS = [
    {"op": "trigger", "camera": "top", "deadline_ms": 50},
    {"op": "reload"},
    {"op": "challenge"},
    {"op": "recipe", "name": None},
]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def line(keys: Keys) -> Iterator[Line]:
    with serving(keys.config) as served:
        yield served


class TestStrangers:
    @pytest.mark.parametrize("why", ["no_curve", "plain_password", "wrong_server_key", "unknown_key"])
    @pytest.mark.parametrize("kind", [zmq.SUB, zmq.DEALER])
    def test_get_nothing(self, keys: Keys, line: Line, why: str, kind: int) -> None:
        """Without the server's key and an admitted one of their own: no message of the stream and no reply."""
        endpoint = line.sockets.endpoint if kind == zmq.SUB else line.sockets.control_endpoint
        unknown = keys.new("unknown")
        stranger = {
            "no_curve": lambda: Peer(kind, endpoint),
            "plain_password": lambda: Peer(kind, endpoint, PLAIN_USERNAME=b"admin", PLAIN_PASSWORD=b"admin"),
            "wrong_server_key": lambda: Peer(kind, endpoint, key=keys.new("me", "control"), server=unknown.public),
            "unknown_key": lambda: keys.peer(kind, endpoint, unknown),
        }[why]()
        asked: list[object] = []
        line.handler = lambda _, request: asked.append(request)
        with stranger, keys.peer(zmq.SUB, line.sockets.endpoint, keys.new("hmi", "read")) as admitted:
            if kind == zmq.DEALER:
                with suppress(zmq.Again):  # it may have given up already
                    stranger.socket.send_json(COMMANDS[0], zmq.NOBLOCK)
            stranger.await_end()
            admitted.listen(5)
            assert stranger.silent()
        assert not asked

    def test_see_nothing_but_the_greeting(self, keys: Keys, line: Line) -> None:
        """Without a handshake not one byte is sent but ZeroMQ's own first 64, however long somebody listens."""
        host, port = line.sockets.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32))
            with keys.peer(zmq.SUB, line.sockets.endpoint, keys.new("hmi", "read")) as admitted:
                admitted.listen(10)
            raw.setblocking(False)
            seen = raw.recv(1000)
            with pytest.raises(BlockingIOError):
                raw.recv(1000)
        assert len(seen) == 64
        assert seen[12:17] == b"CURVE"

    def test_do_not_fill_the_log_and_their_key_is_named(self, keys: Keys, line: Line) -> None:
        """A technician can see which key was refused; one that tries again and again is one line in ten seconds."""
        unknown = keys.new("unknown")
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                with keys.peer(zmq.DEALER, line.sockets.control_endpoint, unknown) as stranger:
                    stranger.await_end()
        refused = [entry for entry in logs if entry["event"] == "client_refused"]
        assert [entry["public_key"] for entry in refused] == [unknown.public.decode()]

    def test_have_no_way_in_over_ipc(self, keys: Keys, tmp_path: Path) -> None:
        with serving(keys.config, bind=f"ipc://{tmp_path}/s", control=f"ipc://{tmp_path}/c") as line:
            with Peer(zmq.DEALER, line.sockets.control_endpoint) as stranger:
                stranger.socket.send_json(STATUS)
                stranger.await_end()
                assert stranger.silent()
            with keys.peer(zmq.REQ, line.sockets.control_endpoint, keys.new("plc", "control")) as plc:
                assert plc.ask(STATUS)["ok"]


class TestRoles:
    def test_reader_asks_and_triggers_nothing(self, keys: Keys, line: Line) -> None:
        asked: list[str] = []
        answer = line.handler
        line.handler = lambda sockets, request: (asked.append(request.request.op), answer(sockets, request))[1]
        with keys.peer(zmq.REQ, line.sockets.control_endpoint, keys.new("hmi", "read")) as hmi:
            for command in COMMANDS:
                reply = hmi.ask({**command, "id": 1})
                assert (reply["op"], reply["id"], reply["error"]["code"]) == (command["op"], 1, "forbidden")
                assert "read/hmi" in reply["error"]["message"]
            assert hmi.ask(STATUS)["ok"]
            assert hmi.ask({"op": "replay", "topic": "verdict/top/part/", "from_seq": 1})["ok"]
        assert asked == ["status", "replay"]
        assert line.refused_triggers == [("top", "forbidden")]

    def test_control_may_command_and_is_known_by_name(self, keys: Keys, line: Line) -> None:
        with keys.peer(zmq.REQ, line.sockets.control_endpoint, keys.new("plc1", "control")) as plc:
            for command in COMMANDS:
                reply = plc.ask(command)
                assert (reply["ok"], reply["role"], reply["client"]) == (True, "control", "control/plc1")

    def test_is_that_of_the_key_whatever_identity_a_peer_takes(self, keys: Keys, line: Line) -> None:
        """A reader that calls itself as a control client does is a reader."""
        endpoint = line.sockets.control_endpoint
        with keys.peer(zmq.REQ, endpoint, keys.new("plc1", "control"), IDENTITY=b"plc1") as plc:
            assert plc.ask(COMMANDS[1])["ok"]
            with keys.peer(zmq.REQ, endpoint, keys.new("hmi", "read"), IDENTITY=b"plc1") as hmi:
                assert hmi.ask(COMMANDS[1])["error"]["code"] == "forbidden"

    def test_without_keys_everybody_has_control_and_an_open_address_is_warned_of(self) -> None:
        insecure = SecurityConfig(insecure=True)
        with (
            structlog.testing.capture_logs() as logs,
            serving(insecure, control="tcp://0.0.0.0:*") as line,
            Peer(zmq.REQ, line.sockets.control_endpoint.replace("0.0.0.0", "127.0.0.1")) as peer,
        ):
            assert peer.ask(COMMANDS[1])["role"] == "control"
        assert [entry["socket"] for entry in logs if entry["event"] == "anybody_can_connect"] == ["control.bind"]


class TestChanges:
    def test_a_new_key_is_admitted_at_once(self, keys: Keys, line: Line) -> None:
        """Nothing is restarted and nobody waits: the folder is looked at when the client comes."""
        with keys.peer(zmq.REQ, line.sockets.control_endpoint, keys.new("one", "read")) as one:
            assert one.ask(STATUS)["ok"]
            with keys.peer(zmq.REQ, line.sockets.control_endpoint, keys.new("two", "control")) as two:
                assert two.ask(STATUS, timeout_s=1)["client"] == "control/two"
            assert one.unbroken

    def test_a_revoked_key_loses_its_open_connections_and_nobody_else_does(self, keys: Keys, line: Line) -> None:
        """Deleting the file ends the running subscription and the control connection, and keeps it from coming back."""
        stays, leaves = keys.new("stays", "control"), keys.new("leaves", "control")
        stream, control = line.sockets.endpoint, line.sockets.control_endpoint
        with (
            keys.peer(zmq.SUB, stream, stays) as stays_sub,
            keys.peer(zmq.REQ, control, stays) as stays_req,
            keys.peer(zmq.SUB, stream, leaves) as leaves_sub,
            keys.peer(zmq.DEALER, control, leaves) as leaves_req,
        ):
            stays_sub.listen()
            leaves_sub.listen()
            assert stays_req.ask(STATUS)["ok"]
            assert leaves_req.ask(STATUS)["ok"]
            (keys.clients / "control" / "leaves.key").unlink()
            leaves_sub.await_end(timeout_s=6)
            leaves_req.await_end(timeout_s=6)
            while not leaves_sub.silent():  # what was under way
                leaves_sub.socket.recv_multipart()
            leaves_req.socket.send_json(STATUS)
            stays_sub.listen(20)
            assert leaves_sub.silent()
            assert leaves_req.silent()
            assert stays_req.ask(COMMANDS[1])["ok"]
            assert stays_sub.unbroken
            assert stays_req.unbroken

    def test_a_key_moved_to_read_commands_no_more(self, keys: Keys, line: Line) -> None:
        """The role is looked up at every request; the connection stays."""
        with keys.peer(zmq.REQ, line.sockets.control_endpoint, keys.new("plc", "control")) as plc:
            assert plc.ask(COMMANDS[1])["ok"]
            (keys.clients / "control" / "plc.key").rename(keys.clients / "read" / "plc.key")
            deadline = Deadline(6)
            while plc.ask(COMMANDS[1])["ok"]:
                assert not deadline.passed
            assert plc.ask(STATUS)["client"] == "read/plc"
            assert plc.unbroken

    def test_the_admitting_thread_s_end_is_a_failure_people_see(
        self, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If nobody can be admitted any more, whoever watches over the sockets' threads finds one that has ended."""
        line = Line(keys.config, lambda *_: None, "tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
        monkeypatch.setattr(access_module.Access, "_answer", lambda *_: 1 / 0)
        with keys.peer(zmq.REQ, line.sockets.control_endpoint, keys.new("plc", "control")) as plc:
            (admitting,) = line.sockets.workers
            assert admitting.join(10)
            assert not admitting.alive
            assert isinstance(admitting.failure, ZeroDivisionError)
            assert plc.silent()
        line.close()


class TestKeyring:
    def test_skips_what_is_no_certificate_and_says_so_once(self, keys: Keys) -> None:
        """A broken file never opens the door, never closes it for the others, and is one log line."""
        good = keys.new("good", "read")
        folder = keys.clients / "control"
        shutil.copy(keys.folder / "good" / "good.key_secret", folder / "secret.key")
        (folder / "empty.key").touch()
        (folder / "text.key").write_text("hello")
        (folder / "short.key").write_text('public-key = "abc"')
        (folder / "huge.key").write_bytes(b"#" * 1_000_000)
        (folder / "folder.key").mkdir()
        os.mkfifo(folder / "pipe.key")
        (folder / "dangling.key").symlink_to("nowhere")
        (folder / "\udcff.key").write_bytes(b"")
        (folder / ".hidden.key").write_text("an editor's own")
        (folder / "notes.txt").write_text("nobody's business")
        with structlog.testing.capture_logs() as logs:
            keyring = Keyring(keys.clients)
            assert not keyring.refresh()
            assert keyring.clients == {good.public: Client("read", "good")}
        problems = [entry["problem"] for entry in logs if entry["event"] == "client_keys_problem"]
        assert len(problems) == 8
        for name in ("secret", "empty", "text", "short", "huge", "folder", "pipe", r"\udcff"):
            assert sum(f"{name}.key" in problem for problem in problems) == 1
        assert good.secret is not None
        assert good.secret.decode() not in str(logs)

    def test_takes_up_a_second_change_within_one_tick_of_the_clock(
        self, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Older kernels stamp files by a clock of some milliseconds; two changes within one can look like one."""
        first, second = keys.new("first", "read"), keys.new("second")
        keyring = Keyring(keys.clients)
        stamps = keyring._look()
        shutil.copy(keys.folder / "second" / "second.key", keys.clients / "read" / "first.key")
        monkeypatch.setattr(keyring, "_look", lambda: stamps)
        assert keyring.refresh()
        assert set(keyring.clients) == {second.public} != {first.public}

    def test_prefers_control_where_a_key_has_both_roles(self, keys: Keys) -> None:
        key = keys.new("both", "read")
        shutil.copy(keys.clients / "read" / "both.key", keys.clients / "control")
        assert Keyring(keys.clients).clients[key.public].role == "control"

    def test_takes_a_folder_that_is_gone_for_nobody(self, keys: Keys) -> None:
        keys.new("plc", "control")
        keyring = Keyring(keys.clients)
        shutil.rmtree(keys.clients)
        with structlog.testing.capture_logs() as logs:
            assert keyring.refresh()
            assert not keyring.refresh()
        assert not keyring.clients
        assert len([entry for entry in logs if "nobody can connect" in entry.get("problem", "")]) == 1

    def test_keeps_the_rights_while_the_folder_cannot_be_read(self, keys: Keys) -> None:
        """A disk that fails must not take the line down; once it reads again, it counts again."""
        plc = keys.new("plc", "control")
        keyring = Keyring(keys.clients)
        shutil.move(keys.clients / "control", keys.folder / "away")
        (keys.clients / "control").symlink_to("control")  # an error of reading that is not "no such file"
        with structlog.testing.capture_logs() as logs:
            assert not keyring.refresh()
            assert not keyring.refresh()
        assert keyring.clients[plc.public].role == "control"
        assert [entry["event"] for entry in logs] == ["client_keys_problem"]
        (keys.clients / "control").unlink()
        assert keyring.refresh()
        assert not keyring.clients

    def test_keeps_the_rights_while_the_process_is_out_of_descriptors(self, keys: Keys) -> None:
        """Strangers that hold connections open can use them up; that takes no right from anybody."""
        plc = keys.new("plc", "control")
        keyring = Keyring(keys.clients)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert not keyring.refresh()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert plc.public in keyring.clients
        assert keyring.problems
        assert not keyring.refresh()
        assert not keyring.problems


class TestConnections:
    def test_end_only_what_is_theirs(self) -> None:
        """A descriptor that became somebody else's connection meanwhile, a camera's for example, is not touched."""
        context = zmq.Context()
        bound = context.socket(zmq.XPUB)
        connections = Connections(bound, "publish")
        bound.bind("tcp://127.0.0.1:*")
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as camera:
            accepted, _ = server.accept()
            with accepted:
                assert not connections._end(camera.fileno())
                assert not connections._end(accepted.fileno())
                assert not connections._end(server.fileno())
                assert not connections._end(10_000)
                camera.sendall(b"frame")
                assert accepted.recv(5) == b"frame"
        connections.close()
        bound.close()
        context.term()


class TestKeyFiles:
    def test_are_private_and_never_replaced(self, tmp_path: Path) -> None:
        public, secret = write_pair(tmp_path, "server")
        before = secret.read_bytes()
        assert secret.stat().st_mode & 0o777 == 0o600
        assert public.stat().st_mode & 0o777 == 0o644
        with pytest.raises(UsageError, match="is there already"):
            write_pair(tmp_path, "server")
        secret.unlink()
        with pytest.raises(UsageError, match="is there already"):
            write_pair(tmp_path, "server")
        assert not secret.exists()
        assert len(before) > 100

    def test_are_those_of_every_zeromq_binding(self, tmp_path: Path) -> None:
        """What zmq.auth writes is read, and what is written zmq.auth reads."""
        public, secret = write_pair(tmp_path, "ours")
        ours = load_certificate(secret, secret=True)
        assert zmq.auth.load_certificate(secret) == (ours.public, ours.secret)
        assert load_certificate(public).public == ours.public
        _, theirs = zmq.auth.create_certificates(tmp_path, "theirs")
        Path(theirs).chmod(0o600)
        assert load_certificate(Path(theirs), secret=True).secret is not None

    def test_do_not_show_their_secret(self, tmp_path: Path) -> None:
        _, secret = write_pair(tmp_path, "server")
        certificate = load_certificate(secret)
        assert certificate.secret is not None
        assert certificate.secret.decode() not in f"{certificate} {certificate!r}"

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda path: path.unlink(), "no such file"),
            (lambda path: path.write_text(""), "no public-key"),
            (lambda path: path.write_bytes(os.urandom(500).replace(b"=", b"")), "no public-key"),
            (lambda path: path.write_text("public-key = 12345"), "not 40 characters"),
            (lambda path: path.write_text(f'public-key = "{"#" * 40}"'), "not 40 characters"),
            (lambda path: path.write_text(path.read_text().split("secret-key")[0]), "only the public key"),
            (lambda path: path.write_text(path.read_text()[:-10]), "secret-key is not 40"),
            (lambda path: path.chmod(0o644), "chmod 600"),
            (lambda path: path.chmod(0o660), "chmod 600"),
            (lambda path: (path.unlink(), path.mkdir()), "is no file"),
            (lambda path: path.write_text(_mixed(path)), "no pair"),
        ],
    )
    def test_that_cannot_serve_are_refused_by_name(self, keys: Keys, damage: object, says: str) -> None:
        """The daemon does not start, and one line names the key of the configuration, the file and what to do."""
        path = keys.config.server_key
        assert path is not None
        damage(path)  # type: ignore[operator]
        with pytest.raises(ConfigError, match=rf"^security\.server_key: {path}: .*{says}") as caught:
            Line(keys.config, lambda *_: None, "tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
        assert "\n" not in str(caught.value)

    def test_need_a_folder_of_clients(self, keys: Keys) -> None:
        shutil.rmtree(keys.clients)
        with pytest.raises(ConfigError, match=r"^security\.client_keys: .*no such folder"):
            Line(keys.config, lambda *_: None, "tcp://127.0.0.1:*", "tcp://127.0.0.1:*")


class TestCommand:
    @pytest.fixture
    def inspectd(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
        """Runs the command line as its user does: exit code, stdout, stderr."""
        monkeypatch.chdir(tmp_path)

        def run(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["inspectd", *arguments])
            with pytest.raises(SystemExit) as end:
                cli.main()
            out, err = capsys.readouterr()
            return int(end.value.code or 0), out, err

        return run

    def test_makes_keys_that_work(self, inspectd, tmp_path: Path) -> None:
        """What `inspectd keys` wrote, put where it says, connects; what it prints is the configuration."""
        code, out, _ = inspectd("keys", "server", "-o", "etc")
        assert code == 0
        assert f'server_key = "{tmp_path}/etc/server.key_secret"' in out
        code, _, _ = inspectd("keys", "client", "plc1", "--role", "control", "-o", "plc1", "--into", "etc/clients")
        assert code == 0
        config = SecurityConfig(server_key=tmp_path / "etc/server.key_secret", client_keys=tmp_path / "etc/clients")
        server = load_certificate(tmp_path / "etc/server.key").public
        plc1 = load_certificate(tmp_path / "plc1/plc1.key_secret", secret=True)
        with serving(config) as line, Peer(zmq.REQ, line.sockets.control_endpoint, key=plc1, server=server) as peer:
            assert peer.ask(STATUS)["client"] == "control/plc1"
        code, out, _ = inspectd("keys", "list", "etc/clients")
        assert (code, out) == (0, f"control/plc1  {plc1.public.decode()}\n")

    def test_replaces_nothing(self, inspectd, tmp_path: Path) -> None:
        """A second key of the same name is exit code 2 and one line, and no new file lies anywhere."""
        inspectd("keys", "server", "-o", ".")
        inspectd("keys", "client", "plc1", "--role", "read", "-o", "a", "--into", "clients")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for arguments in (
            ("server", "-o", "."),
            ("client", "plc1", "--role", "read", "-o", "b", "--into", "clients"),
            ("client", "plc1", "--role", "control", "-o", "a"),
            ("client", "../plc1", "--role", "control", "-o", "a"),
        ):
            code, _, err = inspectd("keys", *arguments)
            assert code == 2
            assert err.startswith("inspectd: ")
            assert err.count("\n") == 1
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_list_tells_what_is_not_accepted(self, inspectd, tmp_path: Path) -> None:
        (tmp_path / "clients" / "read").mkdir(parents=True)
        (tmp_path / "clients" / "read" / "bad.key").write_text("x")
        code, out, err = inspectd("keys", "list", "clients")
        assert code == 1
        assert "clients/read/bad.key: no ZeroMQ certificate" in out + err
        assert inspectd("keys", "list", "nowhere")[0] == 2


def _mixed(path: Path) -> str:
    """The certificate with another one's secret key."""
    public, secret = zmq.curve_keypair()
    assert public
    lines = path.read_text().splitlines()
    return "\n".join(f'    secret-key = "{secret.decode()}"' if "secret-key" in line else line for line in lines)
