"""Releases of inspectd that are a few lines long, for tests of what deploy/install.sh does with releases.

`Releases(folder).wheel("0.2.0", refuses="old_key")` is a file that install.sh takes for a wheel, when `Releases.python`
is its --python: a stand-in that answers what install.sh asks of a Python, and "installs" such a wheel in a few
milliseconds. The program in it checks and runs, says READY to systemd, and misbehaves as the wheel says:

    refuses=WORD   `check` refuses a configuration that holds WORD, and an environment too
    packages=lost  pip cannot get the packages
    start=fails    `run` ends before READY;  start=dies: right after it;  start=ends: after it, as if all were well

What pip was asked to add, by --with, lies in the release as `added`, with the constraints that it was given.
"""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
INSTALL = CHECKOUT / "deploy" / "install.sh"

PYTHON = r"""#!/bin/sh
venv=${0%/bin/python}
case "$1 $2 $3" in
-VV*) echo Python 3.11 ;;
-c*base_prefix*) echo /usr ;;
-c*) ;;
"-m zipfile -t") grep -q ^version= "$4" ;;
"-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "command = $3" >"$3/pyvenv.cfg" && echo made ;;
"-m pip install")
    all=$* && last=${all##* }
    case $all in
    *" --constraint "*)
        wanted=${all#* --constraint } && { cat "${wanted%% *}" && echo "${wanted#* }"; } >"$venv/added" ;;
    *.whl)
        mkdir -p "$venv/share/inspectd"
        cp CHECKOUT/systemd/* CHECKOUT/config.example.toml CHECKOUT/deploy/install.sh "$venv/share/inspectd/"
        cp "$last" "$venv/share/inspectd/requirements.lock"
        cp "PROGRAM" "$venv/bin/inspectd"
        printf '#!/bin/sh\n# %s/bin/python\n' "$venv" >"$venv/bin/other" ;;
    *)
        if grep -q ^packages=lost "$venv/share/inspectd/requirements.lock"; then
            echo "ERROR: no such host" && exit 1
        fi ;;
    esac ;;
"-m pip freeze") echo locked==1.0 ;;
"-m pip check" | "-m compileall "*) ;;
"-m inspectd "*) shift 2 && exec "$venv/bin/inspectd" "$@" ;;
*) echo "the stand-in knows no $*" >&2 && exit 99 ;;
esac
"""

PROGRAM = """#!INTERPRETER -IS
import os, signal, socket, sys
here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
wheel = dict(line.strip().split("=", 1) for line in open(here + "/share/inspectd/requirements.lock"))
if sys.argv[1] == "--version":
    sys.exit(print("inspectd", wheel["version"]))
seen = open(sys.argv[3]).read() + repr(os.environ)
if "secret" in seen:  # wants a credential, as RTSP passwords are given
    open(os.environ["CREDENTIALS_DIRECTORY"] + "/secret").close()
if wheel.get("refuses", chr(0)) in seen:
    sys.exit(print(f"inspectd: {wheel['refuses']}: unknown key", file=sys.stderr) or 2)
if sys.argv[1] == "run":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if wheel.get("start") == "fails":
        sys.exit(1)
    to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    to.connect(os.environ["NOTIFY_SOCKET"].replace("@", chr(0), 1))
    to.send(b"READY=1\\nWATCHDOG_USEC=60000000\\nSTATUS=" + wheel["version"].encode())
    if wheel.get("start") in ("dies", "ends"):
        sys.exit(wheel["start"] == "dies")
    signal.pause()
"""


class Releases:
    """Fake wheels in a folder, and the Python to install them with."""

    def __init__(self, folder: Path, interpreter: str = sys._base_executable):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "program"
        program.write_text(PROGRAM.replace("INTERPRETER", interpreter))
        self.python = folder / "python"
        self.python.write_text(PYTHON.replace("CHECKOUT", str(CHECKOUT)).replace("PROGRAM", str(program)))
        for path in (program, self.python):
            path.chmod(0o755)

    def wheel(self, version: str, **how: str) -> Path:
        path = self.folder / f"inspectd-{version}-py3-none-any.whl"
        path.write_text("".join(f"{key}={value}\n" for key, value in {"version": version, **how}.items()))
        return path


def one_line(done, code, *words):
    """It failed with this code, and one line that holds these words."""
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    for word in words:
        assert word in done.stderr
