"""A Debian machine under QEMU, with a kernel of its own: systemd as its first process, a camera that can be torn out.

`build.sh` makes its disk once; what a machine writes goes to a layer above it that is forgotten with the machine.
Commands run in it as root through QEMU's guest agent (a virtual serial port), so that neither its network nor a shell
on its console is in the way. KVM where that works, software emulation elsewhere.
"""

import base64
import itertools
import json
import os
import shlex
import socket
import subprocess
import time
from pathlib import Path

PROGRAM = "qemu-system-x86_64"
MEMORY_MB = 2560
CORES = 2
KVM_PROOF_S = 20.0
"""A kernel under KVM is at its first words within two."""
POLL_FIRST_S, POLL_LIMIT_S = 0.05, 1.0
"""How often the guest is asked whether a command has ended: less and less, for that costs an emulated machine a lot."""


class BootError(Exception):
    """The machine does not come up."""


class CommandError(Exception):
    """A command in the guest failed that should not have."""


class VirtualMachine:
    """Started and stopped as a context manager. The guest sees the folder `given`, read-only, as /given."""

    def __init__(self, guest: Path, given: Path, folder: Path):
        """`guest` is what build.sh made; `folder` takes the layer, a socket and `console.log`."""
        self._guest, self._given, self._folder = guest, given, folder
        self.accelerator = ""
        self.console = folder / "console.log"
        self._ids = itertools.count(1)
        self._agent = self._lines = None

    def __enter__(self):
        self._folder.mkdir(parents=True, exist_ok=True)
        self._start("kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg")
        try:
            if self.accelerator == "kvm" and not self._shows_life():
                self._kill()
                self._start("tcg")
            self.booted()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, accelerator):
        self.accelerator = accelerator
        command = f"""{PROGRAM} -machine q35 -accel {accelerator} -cpu {"host" if accelerator == "kvm" else "max"}
            -smp {CORES} -m {MEMORY_MB} -nodefaults -no-user-config -display none -nic none
            -kernel {self._guest}/vmlinuz -initrd {self._guest}/initrd.img
            -append 'root=/dev/vda ro console=ttyS0 panic=-1 systemd.show_status=no loglevel=4'
            -drive file={self._guest}/disk.img,if=virtio,format=raw,snapshot=on,cache=unsafe
            -virtfs local,path={self._given},mount_tag=given,security_model=none,readonly=on
            -chardev socket,id=agent,path={self._folder}/agent,server=on,wait=off
            -device virtio-serial -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
            -device virtio-rng-pci -serial file:{self.console}"""
        self.console.unlink(missing_ok=True)
        self._qemu = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", *shlex.split(command)],
            env=os.environ | {"TMPDIR": str(self._folder)},  # where QEMU keeps what the guest writes
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._folder / "qemu.log").open("w"),
        )

    def _shows_life(self):
        """Whether anything comes on the console. There are hosts whose /dev/kvm opens and then runs nothing."""
        limit = time.monotonic() + KVM_PROOF_S
        while time.monotonic() < limit and self._qemu.poll() is None:
            if self.console.exists() and self.console.stat().st_size:
                return True
            time.sleep(0.2)
        return False

    def __exit__(self, *exc):
        self._hang_up()
        self._kill()

    def _kill(self):
        self._qemu.kill()
        self._qemu.wait(30)

    # -- its life -----------------------------------------------------------------------------------------------

    def booted(self, timeout_s=600):
        """Wait until its guest agent answers; the seconds that took."""
        began = time.monotonic()
        while True:
            try:
                self._greet()
                return time.monotonic() - began
            except (OSError, ValueError):
                said = (self._folder / "qemu.log").read_text().strip()
                if self._qemu.poll() is not None:
                    raise BootError(f"QEMU ended: {said}") from None
                if time.monotonic() - began > timeout_s:
                    last = self.console.read_text(errors="replace")[-2000:]
                    raise BootError(f"the guest did not boot in {timeout_s} s: {last}") from None
                time.sleep(0.2)

    def reboot(self):
        """`systemctl reboot`, as somebody would; the seconds until it is there again."""
        before = self.run("cat", "/proc/sys/kernel/random/boot_id").stdout
        began = time.monotonic()
        self._ask("guest-exec", path="/usr/bin/systemctl", arg=["reboot"])
        while True:
            self.booted()
            try:
                if self.run("cat", "/proc/sys/kernel/random/boot_id").stdout != before:
                    return time.monotonic() - began
            except (OSError, ValueError, CommandError):  # it is going down at this very moment
                pass
            assert time.monotonic() - began < 900, "it did not come back"

    # -- what runs in it ----------------------------------------------------------------------------------------

    def run(self, *command, stdin=None, timeout=60):
        """Run a command as root: its CompletedProcess, with text."""
        command = [str(part) for part in command]
        given = {} if stdin is None else {"input-data": base64.b64encode(stdin.encode()).decode()}
        environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"]
        how = {"env": environment, "capture-output": True} | given
        pid = self._ask("guest-exec", path="/usr/bin/env", arg=command, **how)["pid"]
        deadline = time.monotonic() + timeout
        wait_s = POLL_FIRST_S
        while True:
            status = self._ask("guest-exec-status", pid=pid)
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                self._ask("guest-exec", path="/usr/bin/kill", arg=["-9", str(pid)])
                raise subprocess.TimeoutExpired(command, timeout)
            time.sleep(wait_s)
            wait_s = min(POLL_LIMIT_S, wait_s * 1.3)
        texts = [base64.b64decode(status.get(name, "")).decode(errors="replace") for name in ("out-data", "err-data")]
        return subprocess.CompletedProcess(command, status.get("exitcode", -1), *texts)

    def do(self, script, timeout=60):
        """Run a shell script that must succeed; what it printed, stripped.

        Raises:
            CommandError: it failed; with what it said.
        """
        done = self.run("sh", "-euc", script, timeout=timeout)
        if done.returncode != 0:
            raise CommandError(f"{script}: exit code {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def write(self, path, text):
        """A file in the guest, with its folders."""
        done = self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path, stdin=text)
        assert done.returncode == 0, done.stderr

    # -- the agent's protocol: a JSON object a line (QEMU's docs/interop/qemu-ga) ---------------------------------

    def _greet(self):
        """A connection on which question and answer belong together again."""
        self._hang_up()
        self._agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._agent.settimeout(2)
        self._agent.connect(str(self._folder / "agent"))
        self._lines = self._agent.makefile("rb")
        number = next(self._ids)
        question = json.dumps({"execute": "guest-sync-delimited", "arguments": {"id": number}})
        self._agent.sendall(b"\xff" + question.encode() + b"\n")
        while True:
            line = self._lines.readline()
            if not line:
                raise OSError("the port is closed")
            # 0xff stands before the answer to this question; what was under way before is skipped.
            if b"\xff" in line and json.loads(line.rpartition(b"\xff")[2]).get("return") == number:
                self._agent.settimeout(60)
                return

    def _hang_up(self):
        for end in (self._lines, self._agent):
            if end is not None:
                end.close()

    def _ask(self, what, **arguments):
        question = {"execute": what} | ({"arguments": arguments} if arguments else {})
        self._agent.sendall(json.dumps(question).encode() + b"\n")
        line = self._lines.readline()
        if not line:
            raise OSError("the port is closed")
        answer = json.loads(line)
        if "error" in answer:
            raise CommandError(f"{what}: {answer['error']}")
        return answer["return"]
