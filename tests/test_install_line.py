"""deploy/install.sh under a real systemd: lines that are started, upgraded, taken back and left off."""

import os
import time
from contextlib import contextmanager

import pytest
from fake_release import INSTALL, Releases, one_line
from pocket_machine import PYTHON, NotPossibleError, PocketMachine


class Line:
    """A pocket machine with nothing installed, one configuration, and releases to install."""

    def __init__(self, machine, releases):
        self.machine, self.releases = machine, releases

    def install(self, *arguments):
        return self.machine.run(INSTALL, "--python", self.releases.python, "--settle", "0", *arguments, timeout=60)

    def wheel(self, version, *arguments, **how):
        return self.install("--wheel", self.releases.wheel(version, **how), *arguments)

    def write(self, path, text):
        done = self.machine.run("sh", "-c", 'mkdir -p "${1%/*}"; printf %s "$2" >"$1"', "sh", path, text)
        assert done.returncode == 0

    def show(self, name, unit="inspectd@line1"):
        return self.machine.systemctl("show", "--property", name, "--value", unit)

    def runs(self, unit="inspectd@line1"):
        """(state, the version that said READY)."""
        return self.show("ActiveState", unit), self.show("StatusText", unit)

    def drop_in(self, text, unit="inspectd@line1"):
        self.write(f"/etc/systemd/system/{unit}.service.d/test.conf", f"[Service]\n{text}\n")
        self.machine.systemctl("daemon-reload")

    def wait(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    @contextmanager
    def upgrade_on_a_terminal(self, wheel):
        """The script's id in the machine, and its terminal, once it has switched to a release that it watches."""
        terminal, inside = os.openpty()
        command = (INSTALL, "--python", self.releases.python, "--settle", "60", "--wheel", wheel)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), inside)
        process = self.machine.popen("setsid", "--ctty", "--wait", *command, **streams)
        os.close(inside)
        said = b""
        while b"restarting" not in said:
            said += os.read(terminal, 1000)
        found = self.machine.run("pgrep", "-o", "-f", "^/bin/sh .*install.sh.*--settle 60").stdout.strip()
        try:
            yield found, terminal
            assert process.wait(60) != 0
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    try:
        with PocketMachine(tmp_path_factory.mktemp("pocket") / "machine") as machine:
            yield machine
    except NotPossibleError as err:
        pytest.skip(f"no machine within this one: {err}")


@pytest.fixture
def line(machine, tmp_path_factory):
    line = Line(machine, Releases(machine.shared / "releases", PYTHON))
    line.write("/etc/inspectd/line1.toml", "fine")
    yield line
    assert line.install("--uninstall", "--purge").returncode == 0
    machine.run("sh", "-c", "rm -rf /etc/systemd/system/*")
    machine.systemctl("daemon-reload")


def test_a_line_is_enabled_runs_as_its_own_user_is_left_alone_by_a_second_run_and_stopped_by_uninstall(line):
    """READY came from the daemon itself, inside its sandbox; what is removed leaves no unit, and the configuration."""
    done = line.wheel("0.1.0")
    assert (done.returncode, done.stderr) == (0, "")
    assert line.runs() == ("active", "0.1.0")
    assert line.machine.systemctl("is-enabled", "inspectd@line1") == "enabled"
    process = line.show("MainPID")
    assert line.machine.run("ps", "-o", "user=", "-p", process).stdout.strip() == "inspectd"
    assert line.wheel("0.1.0").returncode == 0
    assert line.show("MainPID") == process
    assert line.install("--uninstall").returncode == 0
    assert line.machine.systemctl("list-units", "--all", "--no-legend", "inspectd*.service") == ""
    assert line.machine.run("cat", "/etc/inspectd/line1.toml").stdout == "fine"


def test_without_a_configuration_nothing_starts_and_the_next_step_is_told(line):
    """And once it is there, the next run starts it; a bridge only where it was asked for."""
    line.machine.run("rm", "/etc/inspectd/line1.toml")
    assert "next: write /etc/inspectd/line1.toml" in line.wheel("0.1.0").stdout
    assert line.runs()[0] == "inactive"
    line.write("/etc/inspectd/line1.toml", "fine")
    assert line.wheel("0.1.0").returncode == 0
    assert line.runs() == ("active", "0.1.0")
    assert line.runs("inspectd-modbus@line1")[0] == "inactive"


def test_an_upgrade_restarts_what_runs_and_leaves_off_what_was_off(line):
    """A line that was stopped stays stopped, a masked one is not enabled."""
    for name in ("line2", "line3"):
        line.write(f"/etc/inspectd/{name}.toml", "fine")
    line.machine.systemctl("mask", "inspectd@line3")
    line.wheel("0.1.0")
    line.machine.systemctl("stop", "inspectd@line2")
    assert line.wheel("0.2.0").returncode == 0
    assert line.runs() == ("active", "0.2.0")
    assert line.runs("inspectd@line2")[0] == line.runs("inspectd@line3")[0] == "inactive"


@pytest.mark.parametrize("start", ["fails", pytest.param("dies", marks=pytest.mark.soak)])
def test_a_release_that_does_not_come_up_is_taken_back_by_itself(line, start):
    """Whether it never says READY or ends right after; the old one runs again, and one line says so."""
    line.wheel("0.1.0")
    done = line.wheel("0.2.0", "--settle", "1", start=start)
    one_line(done, 1, "0.2.0-", "was taken back", "journalctl -u inspectd@line1", "0.1.0-")
    assert line.runs() == ("active", "0.1.0")
    assert line.wheel("0.3.0").returncode == 0
    assert line.runs() == ("active", "0.3.0")


def test_the_check_before_an_upgrade_sees_what_the_service_sees(line):
    """Its user, drop-ins and credentials: a secret of root's is found, a variable of a drop-in counts."""
    line.write("/root/password", "user:password")
    line.write(
        "/etc/systemd/system/inspectd@line1.service.d/site.conf",
        "[Service]\nLoadCredential=secret:/root/password\nEnvironment=SITE=loud\n",
    )
    line.machine.systemctl("daemon-reload")
    line.write("/etc/inspectd/line1.toml", "secret")
    assert line.wheel("0.1.0").returncode == 0
    assert line.wheel("0.2.0").returncode == 0
    process = line.show("MainPID")
    one_line(line.wheel("0.3.0", refuses="loud"), 2, "/etc/inspectd/line1.toml", "loud: unknown key", "0.2.0-")
    assert (line.runs(), line.show("MainPID")) == (("active", "0.2.0"), process)
    assert line.machine.run("ls", "/run/systemd/system").stdout.strip() == ""
    assert line.machine.run("test", "-d", "/run/inspectd/line1").returncode == 0


def test_a_terminal_that_closes_in_the_middle_of_an_upgrade_puts_the_old_release_back(line):
    """SIGHUP, and nothing can be written any more, while the new release is watched."""
    line.wheel("0.1.0")
    with line.upgrade_on_a_terminal(line.releases.wheel("0.2.0")) as (script, terminal):
        os.close(terminal)
        line.wait(lambda: line.machine.run("kill", "-0", script).returncode != 0)
    assert line.runs() == ("active", "0.1.0")
    assert line.machine.run("ls", "/opt/inspectd/pending").returncode != 0


def test_a_killed_upgrade_is_taken_back_by_the_next_run_with_all_that_ran_before_it(line):
    """The new release ended by itself, and the link was back already: the line runs again all the same."""
    line.wheel("0.1.0")
    old = line.machine.run("readlink", "/opt/inspectd/current").stdout.strip()
    with line.upgrade_on_a_terminal(line.releases.wheel("0.2.0", start="ends")) as (script, terminal):
        line.machine.run("kill", "-KILL", script)
        line.wait(lambda: line.runs()[0] == "inactive")
        os.close(terminal)
    line.machine.run("ln", "-sfn", old, "/opt/inspectd/current")
    done = line.install("--rollback")
    assert "an upgrade was interrupted: back to 0.1.0-" in done.stdout
    assert (done.returncode, line.runs()) == (0, ("active", "0.1.0"))


def test_a_line_that_cannot_start_is_tried_for_ever_and_comes_up_once_it_can(line):
    """Exit code 2 at each attempt, as of a port in use; the operator's start fails, and says so."""
    line.wheel("0.1.0", refuses="taken")
    line.drop_in("RestartSec=0.3")
    line.write("/etc/inspectd/line1.toml", "taken")
    assert line.machine.run("systemctl", "restart", "inspectd@line1").returncode == 1
    line.wait(lambda: int(line.show("NRestarts")) > 1)
    line.wait(lambda: "status=2" in line.machine.systemctl("status", "inspectd@line1"))
    line.write("/etc/inspectd/line1.toml", "fine")
    line.wait(lambda: line.runs() == ("active", "0.1.0"))


def test_a_mended_line_is_started_by_the_next_run_and_a_bad_one_holds_up_no_other(line):
    """Of the release in force: what is good is started, also where it has tried in vain since; the rest is told."""
    line.machine.run("mv", "/etc/inspectd/line1.toml", "/etc/inspectd/line2.toml")
    line.write("/etc/inspectd/line2.toml", "fine")
    line.wheel("0.1.0", refuses="oops")
    line.machine.systemctl("stop", "inspectd@line2")
    line.write("/etc/inspectd/line1.toml", "oops")
    line.write("/etc/inspectd/line3.toml", "fine")
    line.drop_in("RestartSec=1h")
    one_line(line.wheel("0.1.0", refuses="oops"), 2, "line1.toml is not good", "oops: unknown key")
    assert [line.runs(f"inspectd@line{n}")[0] for n in (1, 2, 3)] == ["inactive", "inactive", "active"]
    line.machine.systemctl("enable", "inspectd@line1")
    assert line.machine.run("systemctl", "start", "inspectd@line1").returncode == 1
    line.write("/etc/inspectd/line1.toml", "fine")
    assert line.wheel("0.1.0", refuses="oops").returncode == 0
    assert [line.runs(f"inspectd@line{n}")[0] for n in (1, 2, 3)] == ["active", "inactive", "active"]


def test_a_line_between_two_attempts_counts_in_an_upgrade(line):
    """It must come up with the new release, or that is taken back; one whose configuration is gone does not count."""
    line.drop_in("RestartSec=1h")
    one_line(line.wheel("0.1.0", start="fails"), 1, "inspectd@line1.service did not come up: journalctl -u inspectd@")
    one_line(line.wheel("0.2.0", start="fails"), 1, "0.2.0-", "was taken back", "0.1.0-")
    done = line.wheel("0.3.0")
    assert (done.returncode, line.runs()) == (0, ("active", "0.3.0")), done.stderr
    line.machine.run("sh", "-c", "echo secret >/etc/inspectd/line1.toml; systemctl restart inspectd@line1")
    assert line.runs()[0] == "activating"
    line.machine.run("rm", "/etc/inspectd/line1.toml")
    assert line.wheel("0.4.0", start="fails").returncode == 0
