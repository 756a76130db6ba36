"""Stop one thread of a process for some seconds, and nothing else of it: `hold_thread.py PID THREAD SECONDS`.

What a debugger does to a thread. The program that it belongs to knows nothing of it, as of a thread that hangs in a
library. THREAD is its name (15 characters of it, as the kernel keeps it), or `main`.
"""

import ctypes
import os
import sys
import time
from pathlib import Path

SEIZE, INTERRUPT = 0x4206, 0x4207  # linux/ptrace.h: PTRACE_SEIZE, PTRACE_INTERRUPT


def main(pid, name, seconds):
    tasks = Path("/proc", pid, "task")
    named = [task.name for task in tasks.iterdir() if (task / "comm").read_text().strip() == name[:15]]
    thread = int(pid if name == "main" else named[0])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    for request in (SEIZE, INTERRUPT):
        if libc.ptrace(request, thread, None, None) != 0:
            sys.exit(f"thread {thread}: {os.strerror(ctypes.get_errno())}")
    print(f"holding {thread}", flush=True)
    time.sleep(float(seconds))  # at the end of this process the thread goes on, if it is still there


if __name__ == "__main__":
    main(*sys.argv[1:])
