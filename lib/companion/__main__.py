"""A command of the project as make calls it, `python -m companion engine …`; if stopped at any time, it says so in one line."""

import runpy
import signal
import sys

STOPPED = 128 + signal.SIGINT  # what shells report for a command that Ctrl-C ended


def main() -> None:
    """Run the module companion.<first argument> with the other arguments."""
    module = f"companion.{sys.argv.pop(1)}"
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # most often during imports, which take seconds
        print("stopped", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
