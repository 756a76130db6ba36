"""What happens to the process and its disk, and what its own people ask of it."""

import json
import os
import signal

from schedule import Kind
from torment import Torment


class DaemonStopped(Torment):
    kind = Kind("daemon stopped (SIGSTOP)", 1, 30)
    group = "process"
    recover_s = 8.0

    def begin(self) -> None:
        os.kill(self.line.daemon.pid, signal.SIGSTOP)

    def end(self) -> None:
        os.kill(self.line.daemon.pid, signal.SIGCONT)


class EvidenceFull(Torment):
    kind = Kind("disk of the evidence full", 5, 30)
    group = "disk"

    def begin(self) -> None:
        self.line.disk.fill()

    def end(self) -> None:
        self.line.disk.make_room()


class EvidenceReadOnly(Torment):
    kind = Kind("disk of the evidence read-only", 5, 30)
    group = "disk"

    def begin(self) -> None:
        self.line.disk.read_only(on=True)

    def end(self) -> None:
        self.line.disk.read_only(on=False)


class _Command(Torment):
    """Somebody commands; the reply must be what it should."""

    group = "line"

    def check(self, reply: dict, *, ok: bool) -> None:
        """Note a reply that is another than expected."""
        self.remark = "as expected" if reply.get("ok") is ok else f"unexpected reply: {json.dumps(reply)}"


class Reload(_Command):
    kind = Kind("reload", 1, 1)

    def begin(self) -> None:
        self.check(self.line.ask("reload"), ok=True)


class Hangup(_Command):
    kind = Kind("reload by SIGHUP", 1, 1)

    def begin(self) -> None:
        os.kill(self.line.daemon.pid, signal.SIGHUP)


class BrokenReload(_Command):
    kind = Kind("reload of a broken configuration", 1, 2)

    def begin(self) -> None:
        self.line.site.write_config(self.line.street.link.port, broken=True)
        self.check(self.line.ask("reload"), ok=False)

    def end(self) -> None:
        self.line.site.write_config(self.line.street.link.port)


class Recipe(_Command):
    kind = Kind("recipe, and back", 2, 20)

    def begin(self) -> None:
        self.check(self.line.ask("recipe", name="lid"), ok=True)

    def end(self) -> None:
        if "unexpected" not in self.remark:
            self.check(self.line.ask("recipe", name=None), ok=True)


class WrongRecipe(_Command):
    kind = Kind("recipe that fails its challenge", 1, 1)

    def begin(self) -> None:
        self.check(self.line.ask("recipe", name="wrong"), ok=False)


class Challenge(_Command):
    kind = Kind("golden pictures", 1, 1)

    def begin(self) -> None:
        self.check(self.line.ask("challenge"), ok=True)
