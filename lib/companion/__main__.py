"""A command of the project as make calls it, `python -m companion engine …`: stopped, it says so in one line, whenever that was."""

import runpy
import signal
import sys

STOPPED = 128 + signal.SIGINT  # what shells say of a command that Ctrl-C ended


def main() -> None:
    """Run the module companion.<first argument> with the other arguments."""
    module = f"companion.{sys.argv.pop(1)}"
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # while it imported, most often: that takes seconds
        print("stopped", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
