"""Minutes, not seconds: run by `make test-soak`."""

import re
from pathlib import Path

import numpy as np
import pytest
from daemon_process import DaemonProcess, Subscriber
from test_daemon import PART, folder, unbalanced, write_config  # noqa: F401 - folder is a fixture

FRAMES = 100_000
WARM_UP = 20_000


def resident_kb(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def threads_and_files(pid):
    process = Path(f"/proc/{pid}")
    return len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_memory_is_flat_over_100_000_frames(folder):  # noqa: F811
    """Resident memory, threads and descriptors do not grow; every frame is answered, none twice."""
    config = write_config(folder, "soak", [("line", "file:clip.mp4?loop=1", "", PART)])
    with DaemonProcess(config) as daemon:
        daemon.started()
        pid = daemon.process.pid
        samples, expected = [], None
        with Subscriber(daemon.endpoint, ["verdict/"]) as subscriber:
            while True:
                message = subscriber.receive(10)
                assert message is not None
                subscriber.messages.clear()
                if message["replayed"]:
                    continue
                assert expected is None or message["seq"] == expected
                expected = message["seq"] + 1
                if message["seq"] % 1000 == 0:
                    samples.append((message["seq"], resident_kb(pid)))
                    assert unbalanced(daemon.scrape()) == []
                if message["seq"] == WARM_UP:
                    at_start = threads_and_files(pid)
                if message["seq"] >= FRAMES:
                    break
            at_end = threads_and_files(pid)
        assert daemon.stop() == 0
    frames, kb = np.array([s for s in samples if s[0] >= WARM_UP]).T
    slope, _ = np.polyfit(frames, kb, 1)
    growth_kb = slope * (FRAMES - WARM_UP)
    print(f"resident {kb[0]} kB -> {kb[-1]} kB, largest {kb.max()}, slope {slope * 1e5:.0f} kB per 100,000 frames")
    assert abs(at_end[0] - at_start[0]) <= 1
    assert abs(at_end[1] - at_start[1]) <= 3  # connections of a scrape
    assert growth_kb < max(1024, 3 * np.std(np.diff(kb)))
    assert kb.max() < 300_000
