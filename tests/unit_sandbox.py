"""Run a command under the system call filter and address families of inspectd@.service, without systemd.

    python tests/unit_sandbox.py COMMAND [ARGUMENT…]

What systemd does with SystemCallFilter=, SystemCallErrorNumber= and RestrictAddressFamilies= is done here
with libseccomp, which systemd brings along. Exit code 77: not possible on this machine.
"""

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

UNIT = Path(os.environ.get("UNIT", Path(__file__).parent.parent / "systemd" / "inspectd@.service"))
NOT_POSSIBLE = 77
ALLOW, ERRNO = 0x7FFF0000, 0x00050000  # seccomp.h: SCMP_ACT_ALLOW, SCMP_ACT_ERRNO
EQUAL = 4  # SCMP_CMP_EQ
NO_NEW_PRIVS = 38  # prctl.h: PR_SET_NO_NEW_PRIVS


class Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def settings(name):
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def call_groups():
    """systemd's own list: {"@group": [calls and groups]}."""
    listing = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True
    ).stdout
    groups, current = {}, []
    for line in listing.splitlines():
        if line.startswith("@"):
            current = groups.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.lstrip().startswith("#"):
            current.append(line.strip())
        elif line.strip() and not line.startswith(" "):
            current = []
    return groups


def expand(name, groups):
    return set().union(*(expand(each, groups) for each in groups[name])) if name.startswith("@") else {name}


def allowed_calls():
    """The lines of SystemCallFilter=, in order: an allow list, and `~` takes away from it."""
    groups = call_groups()
    allowed = expand("@default", groups)
    for line in settings("SystemCallFilter"):
        for name in line.removeprefix("~").split():
            if line.startswith("~"):
                allowed -= expand(name, groups)
            else:
                allowed |= expand(name, groups)
    return allowed


def install():
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    (denied,) = settings("SystemCallErrorNumber")
    context = ctypes.c_void_p(library.seccomp_init(ERRNO | getattr(errno, denied)))
    for name in allowed_calls() - {"socket"}:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # this machine has it
            assert library.seccomp_rule_add_array(context, ALLOW, number, 0, None) == 0, name
    number = library.seccomp_syscall_resolve_name(b"socket")
    families = {int(getattr(socket, name)) for name in settings("RestrictAddressFamilies")[0].split()}
    for family in range(64):
        action = ALLOW if family in families else ERRNO | errno.EAFNOSUPPORT
        rule = (Comparison * 1)(Comparison(0, EQUAL, family, 0))
        assert library.seccomp_rule_add_array(context, action, number, 1, rule) == 0, family
    assert ctypes.CDLL(None).prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    return library.seccomp_load(context)


if __name__ == "__main__":
    try:
        loaded = install()
    except OSError:  # no libseccomp, no systemd-analyze
        sys.exit(NOT_POSSIBLE)
    if loaded != 0:
        sys.exit(NOT_POSSIBLE)
    os.execvp(sys.argv[1], sys.argv[1:])
