"""Run a command of this repository, and press Ctrl-C when it imports a module: python -m tests.interrupted_at MODULE …

Ctrl-C goes to all processes of the command, as from a terminal. `MODULE` may be "worker", for the moment in which a
worker process has been started and imports its code.
"""

import multiprocessing.process
import os
import runpy
import signal
import sys
import time


class Finder:
    """Finds nothing, and is asked for every module that is imported."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._module:
            self._module = ""
            os.killpg(0, signal.SIGINT)


def main() -> None:
    module, script = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell has said
    if module == "worker":
        start = multiprocessing.process.BaseProcess.start

        def start_and_interrupt(self: multiprocessing.process.BaseProcess) -> None:
            start(self)
            time.sleep(0.3)  # it is among its imports, which take longer
            os.killpg(0, signal.SIGINT)

        multiprocessing.process.BaseProcess.start = start_and_interrupt  # type: ignore[method-assign]
    sys.meta_path.insert(0, Finder(module))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
