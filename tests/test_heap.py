"""Free memory between what is in use goes back to the system."""

import re
import subprocess
import sys

PROGRAM = """
import re, pathlib
from inspectd.heap import give_back

def resident_kb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

before = resident_kb()
blocks = [bytearray(2000) for _ in range(50_000)]  # 100 MB in pieces that malloc keeps, not Python
kept = blocks[::20]  # so much stays in use, everywhere between
del blocks
pieces = resident_kb()
give_back()
print(before, pieces, resident_kb(), len(kept))
"""


ARENAS = """
import ctypes, threading
from inspectd.heap import share_arenas

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def arenas(threads):
    # A block of an arena other than the main one lies in a region of 64 MB that begins with the arena's heap.
    begun, places = threading.Barrier(threads), set()
    def take():
        begun.wait()  # all of them at once: none takes over another's arena
        places.add(libc.malloc(5000) >> 26)
        begun.wait()
    all_ = [threading.Thread(target=take) for _ in range(threads)]
    for thread in all_:
        thread.start()
    for thread in all_:
        thread.join()
    return len(places)

share_arenas()
print(arenas(8))
"""


def test_all_threads_share_two_arenas():
    """Each with its own would leave what it freed in another place."""
    alone = ARENAS.replace("share_arenas()\nprint", "print")
    of_their_own, shared = (
        int(subprocess.check_output([sys.executable, "-c", program], timeout=60)) for program in (alone, ARENAS)
    )
    assert of_their_own > 2, "threads share arenas by themselves: this shows nothing"
    assert shared <= 2


def test_free_pages_between_what_is_in_use_are_given_back():
    """A process of its own: nothing else takes or frees memory in it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    before, pieces, after, kept = (int(number) for number in re.findall(r"\d+", done.stdout))
    assert kept == 2500
    assert pieces - before > 60_000, "malloc gave the memory back by itself: this shows nothing"
    assert after - before < (pieces - before) / 2
