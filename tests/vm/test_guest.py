"""The whole thing on a kernel of its own: installed as a user would, a camera that is torn out, systemd, a reboot.

In the order of a line's life. The picture is red, a scratch, but for moments in which a test makes it green: whatever
passes at any other time is a wrong PASS, and the last test looks for one in everything that was heard.
"""

import json
import re
import time
from collections import Counter
from datetime import datetime

import pytest
from given import FOLDER, NEW, OLD, wheel_name
from guest_line import CAMERA, CONFIG, GREEN, IDENTITY, RED, UNIT, is_fault, is_verdict, lay_ready

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

ANOTHER = "vivid:vivid:platform:vivid-001"
STATION = "/dev/inspection-station"


def back(line, mark, since):
    """How many seconds after `since`, by the guest's clock, frames got verdicts again."""
    message = line.wait_for(mark, is_verdict("fail"))
    return time_of(message) - since


def tear_out(line):
    """Unbind the camera from its driver; the daemon says that there is none."""
    mark = line.mark()  # a fault is said once, and may have been by the time that the command has come back
    line.machine.do("echo vivid.0 >/sys/bus/platform/drivers/vivid/unbind")
    line.wait_for(mark, is_fault("refused"))


def time_of(message):
    """Seconds since 1970, of when it was published."""
    return datetime.fromisoformat(message["published_at"]).timestamp()


# -- installed -----------------------------------------------------------------------------------------------------


def test_the_installer_makes_a_service_that_says_ready(line):
    """`install.sh`, a configuration, `install.sh`: enabled, Type=notify, active."""
    assert "next: write /etc/inspectd/line1.toml" in line.first_answer
    assert (line.show("Type"), line.show("ActiveState"), line.show("UnitFileState")) == ("notify", "active", "enabled")
    assert line.show("User") == "inspectd"
    line.wait_for(line.mark(), is_verdict("fail"))


def test_frames_from_the_camera_by_its_path_get_the_verdicts_that_they_must(line):
    """Red is a scratch, green is good; the frames are stamped by the kernel's driver, not by their arrival."""
    mark = line.mark()
    red = line.wait_for(mark, is_verdict("fail"))
    assert (red["label"], red["frame"]["clock"]) == ("scratch", "driver")
    begin = line.mark()
    line.set("test_pattern", GREEN)
    green = line.wait_for(begin, is_verdict("pass"))
    line.set("test_pattern", RED)
    line.wait_for(line.after(begin, green), is_verdict("fail"))
    line.green = (begin, line.mark())
    assert (green["label"], green["camera"], green["roi"]) == ("good", "top", "part")


def test_the_unit_is_closed_as_far_as_it_says_while_camera_and_engine_work(line, report):
    """At most 1.5 of systemd's exposure score; and it is in force: another user namespace, no capability, no root."""
    exposure = line.machine.run("systemd-analyze", "security", "--no-pager", "--threshold=15", f"{UNIT}.service")
    last = exposure.stdout.strip().splitlines()[-1]
    report.fact("systemd-analyze security", re.search(r"\d\.\d", last)[0])
    assert exposure.returncode == 0, exposure.stdout
    pid = line.pid()
    inside = line.machine.do(
        f"readlink /proc/{pid}/ns/user; grep -E 'CapEff|NoNewPrivs|Seccomp:|Groups' /proc/{pid}/status"
    )
    assert inside.splitlines()[0] != line.machine.do("readlink /proc/1/ns/user")
    assert re.search(r"CapEff:\s0{16}", inside)
    assert re.search(r"NoNewPrivs:\s1", inside)
    assert re.search(r"Seccomp:\s2", inside)
    line.wait_for(line.mark(), is_verdict("fail"))


def test_the_journal_has_every_line_with_its_fields(line):
    """`journalctl INSPECTD_EVENT=… INSPECTD_CAMERA=…` finds it, and the message is still the JSON line."""
    (ready,) = line.events("camera_ready", "INSPECTD_CAMERA=top")[-1:]
    assert (ready["_SYSTEMD_UNIT"], ready["PRIORITY"], ready["SYSLOG_IDENTIFIER"]) == (
        f"{UNIT}.service",
        "6",
        "inspectd",
    )
    assert json.loads(ready["MESSAGE"])["camera"] == "top"
    assert "320x180" in ready["INSPECTD_DETAIL"]


# -- while it runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["+1 hour", "-1 hour"])
def test_a_wall_clock_that_is_stepped_stalls_nothing_and_drops_nothing(line, step):
    """An hour forth, and one back: verdicts go on, in order, without a gap, a fault or a latency below zero."""
    mark = line.mark()
    line.wait_for(mark, is_verdict("fail"))
    line.machine.do(f"date --set '{step}' >/dev/null")
    stepped = line.mark()
    line.until(lambda: len(line.since(stepped)) >= 15)
    heard = line.since(mark)
    verdicts = [message for message in heard if "verdict" in message and not message["replayed"]]
    assert {message["verdict"] for message in verdicts} == {"fail"}, heard
    numbers = [message["seq"] for message in verdicts]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    indexes = [message["frame"]["index"] for message in verdicts]
    assert indexes == list(range(indexes[0], indexes[0] + len(indexes)))
    assert all(0 <= message["latency_ms"]["total"] < 5000 for message in verdicts)
    assert not [message for message in heard if message.get("state") == "fault"]


def test_a_reload_takes_a_good_configuration_and_refuses_a_bad_one_without_a_break(line):
    """`systemctl reload`: the same process; what is good is in force, what is not leaves the old one and says why."""
    pid, mark = line.pid(), line.mark()
    before = line.wait_for(mark, is_verdict("fail"))["config"]
    line.place(CONFIG + "[decision]\npass_min = 0.95\n")
    line.machine.do(f"systemctl reload {UNIT}")
    line.wait_for(mark, lambda message: is_verdict("fail")(message) and message["config"] != before)
    line.place(CONFIG + "[decision]\npass_min = 7\n")
    line.machine.do(f"systemctl reload {UNIT}")
    line.until(lambda: [each for each in line.journal("PRIORITY=4", "PRIORITY=3") if "pass_min" in each["MESSAGE"]])
    mark = line.mark()
    assert line.wait_for(mark, is_verdict("fail"))["config"] != before
    line.place()
    line.machine.do(f"systemctl reload {UNIT}")
    line.wait_for(mark, lambda message: is_verdict("fail")(message) and message["config"] == before)
    assert line.pid() == pid


# -- the camera ----------------------------------------------------------------------------------------------------


def test_a_camera_that_is_torn_out_is_a_fault_and_comes_back(line, report):
    """The driver takes its device away (vivid's `disconnect`): the status says so, then red is red again."""
    mark, torn_at = line.mark(), line.now()
    line.set("disconnect")
    fault = line.wait_for(mark, is_fault("ended"))
    report.fact("torn out, until the status says so", f"{time_of(fault) - torn_at:.1f} s")
    report.fact("torn out, until verdicts are back", f"{back(line, line.after(mark, fault), torn_at):.1f} s")


def test_a_camera_whose_stream_breaks_is_opened_anew(line, report):
    """The driver reports a fatal error of its own (vivid's `inject_fatal_streaming_error`)."""
    mark, broken_at = line.mark(), line.now()
    line.set("inject_fatal_streaming_error")
    fault = line.wait_for(mark, is_fault("ended"))
    report.fact("stream broken, until verdicts are back", f"{back(line, line.after(mark, fault), broken_at):.1f} s")


def test_a_picture_that_the_driver_calls_damaged_is_not_judged(line):
    """V4L2_BUF_FLAG_ERROR on one buffer: `no_result` (corrupt) for that frame."""
    mark = line.mark()
    line.set("inject_v4l2_buf_flag_error")
    line.wait_for(mark, is_verdict("no_result", "corrupt"))
    line.wait_for(line.mark(), is_verdict("fail"))


def test_a_camera_that_falls_silent_is_a_stall_and_is_opened_anew(line, report):
    """Every buffer lost (vivid's `percentage_of_dropped_buffers`): a fault within stall_timeout_s and a bit."""
    mark, silent_at = line.mark(), line.now()
    line.set("percentage_of_dropped_buffers", 100)
    fault = line.wait_for(mark, is_fault("stall"))
    report.fact("silent, until the status says so", f"{time_of(fault) - silent_at:.1f} s")
    line.set("percentage_of_dropped_buffers", 0)
    since = line.now()
    report.fact("talking again, until verdicts are back", f"{back(line, line.after(mark, fault), since):.1f} s")


def test_a_camera_that_comes_back_under_another_number_is_found_by_its_path(line, report):
    """Its driver is unbound, something else takes /dev/video0, the driver is bound again: by-path leads to it."""
    before, pid = line.machine.do(f"readlink -f {CAMERA}"), line.pid()
    tear_out(line)
    assert not line.machine.do("ls /dev/v4l/by-path 2>/dev/null || true")
    line.machine.do("modprobe -r vivid && modprobe vivid vid_cap_nr=5 && udevadm settle")
    since = line.now()
    assert line.machine.do(f"readlink -f {CAMERA}") == "/dev/video5" != before
    report.fact("plugged in again, until verdicts are back", f"{back(line, line.mark(), since):.1f} s")
    tear_out(line)
    line.machine.do("echo vivid.0 >/sys/bus/platform/drivers/vivid/bind && udevadm settle")
    line.wait_for(line.mark(), is_verdict("fail"))
    assert line.pid() == pid


def test_another_camera_in_its_place_is_refused_even_if_it_would_pass(line):
    """The first one is torn out and its place leads to another, which shows a good part: a fault, and no verdict."""
    tear_out(line)
    line.machine.do(
        f"modprobe -r vivid && modprobe vivid n_devs=2 node_types=1,1 && udevadm settle && ln -sf video0 {STATION}"
    )
    line.set("test_pattern", GREEN, device="/dev/video1")
    line.place(CONFIG.replace(CAMERA, STATION).replace(f'identity = "{IDENTITY}"\n', ""))
    line.machine.do(f"systemctl restart {UNIT}", timeout=600)
    mark = line.mark()
    line.wait_for(mark, is_verdict("fail"))
    line.machine.do(f"ln -sf video1 {STATION}")
    line.set("disconnect", device="/dev/video0")
    line.wait_for(mark, is_fault("replaced"))
    assert ANOTHER in line.events("camera_fault", "INSPECTD_REASON=replaced")[-1]["INSPECTD_DETAIL"]
    there = line.mark()
    line.until(lambda: line.attempts("replaced") >= 4)  # and each of them came to nothing
    assert not [message for message in line.since(there) if message.get("verdict") in ("pass", "fail")]
    line.machine.do(f"ln -sf video0 {STATION}")
    line.wait_for(there, is_verdict("fail"))
    assert not [message for message in line.since(mark) if message.get("verdict") == "pass"]
    line.place()
    line.machine.do(
        f"systemctl stop {UNIT} && modprobe -r vivid && modprobe vivid && udevadm settle && systemctl start {UNIT}",
        timeout=600,
    )
    line.wait_for(line.mark(), is_verdict("fail"))


# -- the process ---------------------------------------------------------------------------------------------------


def test_a_killed_daemon_is_back(line, report):
    """SIGKILL: systemd starts it again, and verdicts come with a new boot_id."""
    before, restarts, mark, killed_at = (
        line.wait_for(line.mark(), is_verdict("fail")),
        int(line.show("NRestarts")),
        line.mark(),
        line.now(),
    )
    line.machine.do(f"kill -9 {line.pid()}")
    after = line.wait_for(mark, lambda message: is_verdict("fail")(message) and message["boot_id"] != before["boot_id"])
    report.fact("kill -9, until verdicts are back", f"{time_of(after) - killed_at:.1f} s")
    assert int(line.show("NRestarts")) == restarts + 1


def test_a_hung_main_thread_is_brought_down_by_the_watchdog_of_systemd(line, report):
    """One thread is held, as by a debugger; the others go on. WatchdogSec passes, systemd ends and restarts it."""
    restarts, mark, held_at = int(line.show("NRestarts")), line.mark(), line.now()
    boot = line.wait_for(mark, is_verdict("fail"))["boot_id"]
    line.machine.do(f"systemd-run -q --unit hold python3 /given/hold_thread.py {line.pid()} main 300")
    line.until(lambda: int(line.show("NRestarts")) == restarts + 1)
    lines = line.machine.do(f"journalctl --no-pager -o cat -u {UNIT} -n 50")
    assert "Watchdog timeout" in lines, lines
    after = line.wait_for(mark, lambda message: is_verdict("fail")(message) and message["boot_id"] != boot)
    report.fact("main thread held, until verdicts are back", f"{time_of(after) - held_at:.1f} s")
    line.machine.run("systemctl", "stop", "hold")


def test_it_stops_within_five_seconds_and_not_by_force(line, report):
    line.machine.do(f"systemctl stop {UNIT}")
    asked, gone = (int(line.show(f"{name}TimestampMonotonic")) for name in ("ActiveExit", "InactiveEnter"))
    took = (gone - asked) / 1e6
    report.fact("systemctl stop", f"{took:.1f} s")
    assert (line.show("ActiveState"), line.show("Result"), line.show("ExecMainStatus")) == ("inactive", "success", "0")
    assert took < 5
    mark = line.mark()
    line.machine.do(f"systemctl start {UNIT}", timeout=600)
    line.wait_for(mark, is_verdict("fail"))


def test_after_a_reboot_it_is_there_by_itself(line, report):
    boot, mark = line.wait_for(line.mark(), is_verdict("fail"))["boot_id"], line.mark()
    report.fact("reboot, until commands run", f"{line.machine.reboot():.0f} s")
    began = time.monotonic()
    line.wait_for(mark, lambda message: is_verdict("fail")(message) and message["boot_id"] != boot)
    report.fact("and then until verdicts are back", f"{time.monotonic() - began:.0f} s")
    assert line.show("NRestarts") == "0", line.machine.do(f"journalctl --no-pager -b -u {UNIT} -o cat -n 40")


# -- upgraded ------------------------------------------------------------------------------------------------------


def test_an_upgrade_with_a_bad_bundle_keeps_the_old_release_running_and_a_good_one_can_be_rolled_back(line):
    """One bit of the bundle is wrong: exit code 2, one line, the same process goes on. Mended: upgraded, and back."""
    lay_ready(line.machine, FOLDER / "given", wheel_name(NEW))
    pid, mark = line.pid(), line.mark()

    def install(*arguments):
        command = ("sh", "/given/deploy/install.sh", "--wheels", "/given/wheels", *arguments)
        return line.machine.run(*command, timeout=1200)

    line.machine.do("echo x >>/etc/inspectd/bundle/openvino/model.bin")
    done = install("--wheel", f"/given/wheels/{wheel_name(NEW)}")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stdout + done.stderr
    assert "model.bin" in done.stderr
    assert f"{OLD}-" in done.stderr
    assert line.pid() == pid
    line.wait_for(line.mark(), is_verdict("fail"))

    line.machine.do("cp -r /given/bundle /etc/inspectd/")
    for arguments, version in ((("--wheel", f"/given/wheels/{wheel_name(NEW)}"), NEW), (("--rollback",), OLD)):
        done = install(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        assert f"/releases/{version}-" in line.machine.do(f"tr '\\0' ' ' </proc/{line.pid()}/cmdline")
        line.wait_for(line.mark(), is_verdict("fail"))
    assert not [message for message in line.since(mark) if message.get("verdict") == "pass"]


def test_nothing_passed_while_the_picture_was_red(line, report):
    """All that was heard but while one test made it green: thousands of verdicts, faults and restarts, and no pass."""
    begin, end = line.green
    heard = [message for message in line.since(0, begin) + line.since(end) if "verdict" in message]
    counts = Counter(message["verdict"] for message in heard)
    report.fact("verdicts on red", ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    assert counts["fail"] > 100
    assert counts["pass"] == 0
