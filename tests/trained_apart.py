"""Training in a process of its own that can be killed, without a fresh interpreter that imports torch each time.

The processes are real; they are forked from a server that has imported the package and run nothing.
"""

import multiprocessing
import sys
import traceback

from inspectd.workshop.options import TrainOptions

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["inspectd.workshop.train"])


def start_training(data, bundle, errors, options: TrainOptions):
    """Train `bundle`, or go on with it where a run is unfinished; a traceback is written to the file `errors`."""
    process = _FORKED.Process(target=_train, args=(data, bundle, errors, options))
    process.start()
    return process


def _train(data, bundle, errors, options):
    from inspectd.workshop.train import train

    unfinished = bundle.with_name(f"{bundle.name}.run") / "last.safetensors"
    try:
        train(data, bundle, options, resume=unfinished.exists(), restart=not unfinished.exists())
    except BaseException:
        errors.write_text(traceback.format_exc())
        sys.exit(1)
