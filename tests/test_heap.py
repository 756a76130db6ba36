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


def test_free_pages_between_what_is_in_use_are_given_back():
    """A process of its own: nothing else takes or frees memory in it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    before, pieces, after, kept = (int(number) for number in re.findall(r"\d+", done.stdout))
    assert kept == 2500
    assert pieces - before > 60_000, "malloc gave the memory back by itself: this shows nothing"
    assert after - before < (pieces - before) / 2
