"""deploy/install.sh: installed, upgraded, taken back and removed, in a folder. test_install_line.py runs lines."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_release import CHECKOUT, INSTALL, Releases, one_line

UNITS = ("inspectd@.service", "inspectd-modbus@.service", "inspectd-opcua@.service")


class Image:
    """A folder that install.sh installs into with --root, and releases to install."""

    def __init__(self, folder: Path):
        self.root = folder / "image"
        self.root.mkdir()
        self.releases = Releases(folder / "releases")
        self.opt, self.etc = self.root / "opt/inspectd", self.root / "etc/inspectd"

    def install(self, *arguments, path=os.environ["PATH"], **how):
        command = [INSTALL, "--root", self.root, "--python", self.releases.python, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": path}, **how)

    def wheel(self, version, **how):
        return self.install("--wheel", self.releases.wheel(version, **how))

    def release(self, link="current"):
        """The version that a link names, and "" when it does not name a whole release."""
        path = self.opt / link
        return path.resolve().name.partition("-")[0] if (path / ".complete").exists() else ""

    def configure(self, text="", name="line1.toml"):
        self.etc.mkdir(parents=True, exist_ok=True)
        (self.etc / name).write_text(text)

    def tree(self):
        """Every path with what makes it what it is."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            what = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else ""
            found[str(path.relative_to(self.root))] = (what, path.lstat().st_mode, path.lstat().st_mtime_ns)
        return found


@pytest.fixture
def image(tmp_path):
    return Image(tmp_path)


def test_shellcheck_finds_no_fault():
    """As POSIX sh, for Debian's sh is no bash."""
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--shell=sh", INSTALL],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


# -- into a folder --------------------------------------------------------------------------------------


def test_an_image_gets_a_release_units_and_places_and_no_path_of_the_folder_it_was_made_in(image):
    """No root rights, no systemctl; programs of the release find each other by the paths of the image."""
    done = image.wheel("0.1.0")
    assert (done.returncode, done.stderr) == (0, "")
    assert image.release() == "0.1.0"
    assert str((image.opt / "current").readlink()).startswith("releases/0.1.0-")
    for unit in UNITS:
        assert "ExecStart=/opt/inspectd/current/bin/inspectd " in (image.root / "etc/systemd/system" / unit).read_text()
    assert (image.root / "etc/sysusers.d/inspectd.conf").read_text().endswith("/var/lib/inspectd\n")
    assert (image.etc / "line1.toml.example").read_bytes() == (CHECKOUT / "config.example.toml").read_bytes()
    assert (image.root / "var/lib/inspectd").is_dir()
    for path in (*(image.opt / "current/bin").iterdir(), image.opt / "current/pyvenv.cfg"):
        assert str(image.root) not in path.read_text(), path


def test_installing_again_changes_nothing(image):
    """The same wheel and Python are the same release: no file is written anew."""
    image.configure("fine")
    image.wheel("0.1.0")
    before = image.tree()
    assert image.wheel("0.1.0").returncode == 0
    assert image.tree() == before


def test_an_upgrade_keeps_the_release_before_and_drops_older_ones(image):
    """So that --rollback has where to go, and the disk of an inspection PC does not fill."""
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        assert image.wheel(version).returncode == 0
    assert (image.release(), image.release("previous")) == ("0.3.0", "0.2.0")
    assert len(list((image.opt / "releases").iterdir())) == 2


def test_the_same_version_built_anew_is_another_release(image):
    """A wheel that differs is never installed over what runs."""
    image.wheel("0.1.0")
    first = (image.opt / "current").resolve()
    image.wheel("0.1.0", note="rebuilt")
    assert (image.opt / "current").resolve() != first
    assert (image.opt / "previous").resolve() == first


def test_packages_that_are_wanted_too_are_in_the_release_before_it_runs_and_in_the_next_ones(image):
    """torch for CUDA: bound to the locked versions, another release than without, kept until it is said otherwise."""
    image.wheel("0.1.0")
    wheel = image.releases.wheel("0.1.0")
    for arguments, version, added in [
        (("--wheel", wheel, "--with", "torch==2.8.0,torchvision"), "0.1.0", "locked==1.0\ntorch==2.8.0 torchvision\n"),
        (("--wheel", image.releases.wheel("0.2.0")), "0.2.0", "locked==1.0\ntorch==2.8.0 torchvision\n"),
        (("--wheel", wheel, "--with", "none"), "0.1.0", None),
        (("--wheel", image.releases.wheel("0.3.0")), "0.3.0", None),
    ]:
        done = image.install(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert image.release() == version
        found = image.opt / "current/added"
        assert (found.read_text() if found.exists() else None) == added, arguments


def test_whoever_reads_along_may_leave(image):
    """`install.sh | tee log`, and the terminal of tee is closed: the upgrade comes to its end."""
    image.wheel("0.1.0")
    reader, writer = os.pipe()
    os.close(reader)
    command = [INSTALL, "--root", image.root, "--python", image.releases.python]
    wheel = image.releases.wheel("0.2.0")
    done = subprocess.run([*command, "--wheel", wheel], stdout=writer, stderr=writer, timeout=60)
    os.close(writer)
    assert (done.returncode, image.release()) == (0, "0.2.0")


@pytest.mark.parametrize("where", ["line1.toml", "line2.toml"])
def test_a_configuration_that_the_new_release_refuses_keeps_the_old_one(image, where):
    """Whichever line it is of; the message names the file, the key and what stays."""
    image.configure("fine")
    image.configure("old_key = 1", where)
    image.wheel("0.1.0")
    one_line(image.wheel("0.2.0", refuses="old_key"), 2, where, "old_key: unknown key", "0.1.0-")
    assert (image.release(), image.release("previous")) == ("0.1.0", "")


def test_the_release_in_force_says_what_is_wrong_with_each_configuration(image):
    """`Mend it, run again`: the run checks them, though there is nothing to install."""
    image.wheel("0.1.0", refuses="old_key")
    for name in ("line1.toml", "line2.toml"):
        image.configure("old_key", name)
    one_line(image.wheel("0.1.0", refuses="old_key"), 2, "line1.toml is not good", "line2.toml is not good", "old_key:")


def test_a_configuration_is_checked_with_the_environment_of_its_line(image):
    """/etc/inspectd/line1.env overrides the file when the daemon runs, so it counts when it is checked."""
    image.configure("fine")
    image.configure('# settings\nINSPECTD__LOG__LEVEL="loud"\nPATH=/nowhere', "line1.env")
    image.wheel("0.1.0")
    one_line(image.wheel("0.2.0", refuses="loud"), 2, "line1.toml", "loud")
    assert image.wheel("0.3.0", refuses="/nowhere").returncode == 0


def test_what_is_no_line_is_not_checked_and_a_line_without_a_usable_name_is_named(image):
    """A layout of a bridge may lie beside a configuration; a name becomes part of a unit's."""
    image.configure("old_key", "line1.layout.toml")
    assert image.wheel("0.1.0", refuses="old_key").returncode == 0
    image.configure("fine", "line 2.toml")
    one_line(image.wheel("0.2.0"), 2, "line 2.toml: rename it")
    assert image.release() == "0.1.0"


def test_packages_that_cannot_be_had_keep_the_old_release_and_the_next_run_builds_anew(image):
    """What was left half built is neither taken for whole nor left lying."""
    image.wheel("0.1.0")
    lost = image.releases.wheel("0.2.0", packages="lost")
    one_line(image.install("--wheel", lost), 1, "ERROR: no such host", "--wheels DIR")
    assert image.release() == "0.1.0"
    (half_built,) = (image.opt / "releases").glob("0.2.0-*/")
    (half_built / "stale").touch()
    one_line(image.install("--wheel", lost), 1, "no such host")
    assert not (half_built / "stale").exists()
    assert image.wheel("0.3.0").returncode == 0
    assert {path.name.partition("-")[0] for path in (image.opt / "releases").iterdir()} == {"0.1.0", "0.3.0"}


def test_a_rollback_goes_to_the_release_before_and_twice_returns(image):
    """By the copy of the script that lies beside the releases, for the source may be gone."""
    image.configure("fine")
    image.wheel("0.1.0")
    image.wheel("0.2.0")
    for current, previous in [("0.1.0", "0.2.0"), ("0.2.0", "0.1.0")]:
        done = subprocess.run([image.opt / "install.sh", "--root", image.root, "--rollback"], timeout=60)
        assert done.returncode == 0
        assert (image.release(), image.release("previous")) == (current, previous)


def test_a_rollback_that_cannot_be_changes_nothing(image):
    """No release before, or one that does not know a key of today's configuration."""
    one_line(image.install("--rollback"), 2, "no release to go back to")
    image.wheel("0.1.0", refuses="new_key")
    image.wheel("0.2.0")
    image.configure("new_key")
    one_line(image.install("--rollback"), 2, "new_key", "0.2.0-")
    assert image.release() == "0.2.0"


def test_uninstall_keeps_what_is_yours_and_purge_does_not(image):
    """Configuration, journal and evidence; and both can be said twice."""
    image.configure("fine")
    image.wheel("0.1.0")
    journal = image.root / "var/lib/inspectd/line1/journal.db"
    journal.parent.mkdir()
    journal.touch()
    for _ in range(2):
        assert image.install("--uninstall").returncode == 0
        assert not image.opt.exists()
        assert not list((image.root / "etc/systemd/system").iterdir())
        assert journal.exists()
        assert (image.etc / "line1.toml").exists()
    assert image.install("--uninstall", "--purge").returncode == 0
    assert [path for path in image.root.rglob("*") if not path.is_dir()] == []
    assert not image.etc.exists()
    assert not journal.parent.exists()


@pytest.mark.parametrize("what", [(), ("--rollback",), ("--uninstall", "--purge")])
def test_a_dry_run_says_what_would_be_done_and_does_nothing(image, what):
    """For upgrade, rollback and removal."""
    image.configure("fine")
    image.wheel("0.1.0")
    image.wheel("0.2.0")
    arguments = what or ("--wheel", image.releases.wheel("0.3.0"))
    before = image.tree()
    done = image.install("--dry-run", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "would" in done.stdout
    assert image.tree() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wheels"], "--wheels needs a value"),
        *(
            ([option, ""], f"{option} needs a value")
            for option in ("--root", "--wheel", "--from", "--wheels", "--with")
        ),
        (["--whel", "x"], "--whel is no option"),
        (["--wheel", "a", "--from", "b"], "one of the two"),
        (["--wheel", "/nowhere/inspectd-0.1.0-py3-none-any.whl"], "no such file"),
        (["--wheel", "/etc/passwd"], "expected a file inspectd-VERSION-py3-none-any.whl"),
        (["--from", "/etc"], "/etc: is no source tree"),
        (["--wheels", "/nowhere"], "--wheels /nowhere: is no folder"),
        (["--python", "/nowhere/python"], "there is no such program"),
        (["--python", "/bin/false"], "Python 3.11 or newer"),
        (["--bridge", "profinet"], "choose modbus or opcua"),
        (["--settle", "5s"], "whole seconds"),
        (["--with", "torch;reboot"], "NAME or NAME==VERSION"),
        (["--with", "torch,--pre"], "NAME or NAME==VERSION"),
        (["--purge"], "--uninstall only"),
        (["--root", "/nowhere"], "--root /nowhere: is no folder"),
        (["--root", "/"], "--root /: give a folder"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_option(image, arguments, words):
    """Exit code 2, nothing written."""
    one_line(image.install(*arguments), 2, words)
    assert [path for path in image.root.rglob("*") if not path.is_dir() and path.name != ".lock"] == []


def test_a_damaged_wheel_is_refused(image):
    """A stick that was pulled too early."""
    wheel = image.releases.wheel("0.1.0")
    wheel.write_text("")
    one_line(image.install("--wheel", wheel), 2, "is damaged; copy it again")


def test_two_at_once_do_not_meet(image):
    """The second is told so and leaves."""
    image.wheel("0.1.0")
    with subprocess.Popen(
        ["flock", image.opt / ".lock", "sh", "-c", "echo locked; read x"], stdin=-1, stdout=-1
    ) as other:
        assert other.stdout.readline()
        one_line(image.wheel("0.2.0"), 1, "another install.sh is at work")
        other.communicate(b"\n")
    assert image.wheel("0.2.0").returncode == 0


def test_units_that_cannot_be_put_back_are_told_and_stay_whole(image, tmp_path):
    """A disk that is full: what they start is the old release all the same, and the next run has room."""
    image.wheel("0.1.0")
    image.wheel("0.2.0")
    (image.opt / "pending").write_text((image.opt / "previous").readlink().name)
    unit = image.root / "etc/systemd/system" / UNITS[0]
    unit.write_text("newer")
    full = tmp_path / "full" / "install"
    full.parent.mkdir()
    full.write_text(
        '#!/bin/sh\ncase $* in *@.service*) echo torn >"$5" && exit 1 ;; *) exec /usr/bin/install "$@" ;; esac\n'
    )
    full.chmod(0o755)
    done = image.install("--rollback", path=f"{full.parent}:{os.environ['PATH']}")
    assert (done.returncode, image.release(), unit.read_text()) == (1, "0.1.0", "newer")
    assert "were not put back" in done.stdout
    assert image.wheel("0.1.0").returncode == 0
    assert "inspectd run" in unit.read_text()


# -- killed half-way ------------------------------------------------------------------------------------

# Stands before every program that changes something: counts, and at the given count kills the script and itself.
DEADLY = """#!/bin/sh
read n <"{folder}/count"
n=$((n + 1))
echo $n >"{folder}/count"
[ $n -ne "$KILL_AT" ] || kill -9 0
exec {program} "$@"
"""
CHANGING = ("cp", "install", "ln", "mkdir", "mv", "rm", "sed", "touch")


def upgrade_killed_at(count, folder):
    """An image at 0.1.0 whose upgrade is killed at its count-th change, the wheel, and whether it came that far."""
    folder.mkdir()
    image = Image(folder)
    image.configure("fine")
    image.wheel("0.1.0")
    wheel = image.releases.wheel("0.2.0")
    deadly = folder / "deadly"
    deadly.mkdir()
    (deadly / "count").write_text("0")
    for name in CHANGING:
        (deadly / name).write_text(DEADLY.format(folder=deadly, program=shutil.which(name)))
        (deadly / name).chmod(0o755)
    process = subprocess.Popen(
        [INSTALL, "--root", image.root, "--python", image.releases.python, "--wheel", wheel],
        env={"PATH": f"{deadly}:{os.environ['PATH']}", "KILL_AT": str(count)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    code = process.wait(60)
    assert code in (0, -signal.SIGKILL)
    return image, wheel, code != 0


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_killed_at_any_step_a_whole_release_is_in_force_and_the_next_run_mends_it(tmp_path, stride):
    """SIGKILL before every change that an upgrade makes (every fifth one in the short run).

    Between the switch and the proof that the new release runs the old one counts: --rollback returns to it.
    """
    steps, unproven = 0, 0
    while True:
        count = 1 + steps * stride
        image, wheel, killed = upgrade_killed_at(count, tmp_path / str(count))
        if not killed:
            break
        steps += 1
        assert image.release() in ("0.1.0", "0.2.0"), count
        check = [image.opt / "current/bin/python", "-m", "inspectd", "check", "-c", image.etc / "line1.toml"]
        assert subprocess.run(check, timeout=60).returncode == 0, count
        if (image.opt / "pending").exists():
            unproven += 1
            done = image.install("--rollback")
            assert "an upgrade was interrupted: back to 0.1.0-" in done.stdout, count
            assert (done.returncode, image.release(), image.release("previous")) == (0, "0.1.0", ""), count
        done = image.install("--wheel", wheel)
        assert (done.returncode, done.stderr) == (0, ""), count
        assert (image.release(), image.release("previous")) == ("0.2.0", "0.1.0"), count
        assert not (image.opt / "pending").exists(), count
        assert len(list((image.opt / "releases").iterdir())) == 2, count
        assert not list(image.root.rglob("*.new")), count
    assert steps >= 16 // stride
    assert unproven >= 5 // stride
