"""What takes long to make is made once in a run of the tests, by whichever file and process asks for it first."""

import fcntl
import os


def made_once(tmp_path_factory, name, make):
    """The folder that `make(folder)` filled, common to all files and to all processes of pytest-xdist.

    What is made may depend on nothing but `name`, and nobody changes it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own below that of the run
    place, work = root / f"once-{name}", root / f"once-{name}.{os.getpid()}"
    with (root / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            work.mkdir()
            make(work)
            work.rename(place)
    return place
