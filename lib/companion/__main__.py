"""The project's commands: `python -m companion COMMAND …`. What is wrong, or an interruption, is said in one line."""

import importlib
import signal
import sys

from companion import checkout
from robust_features.settings import UserError

STOPPED = 128 + signal.SIGINT  # what shells report for a command that Ctrl-C ended
COMMANDS = {
    "params": "check the settings and write run.yaml",
    "plan": "what a scale would cost on this machine",
    "engine": "run what is not up to date, stages side by side",
    "pipeline": "run one notebook, or render pages",
    "fetched": "lay published networks ready",
    "bundle": "pack a paper for a machine without network, DVC and git, and take back what it made",
    "together": "train one network in several processes, under torchrun",
}


def main() -> None:
    """Run the `main` of the module of that name with the other arguments."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        sys.exit("python -m companion COMMAND …\n" + "\n".join(f"  {key:10}{does}" for key, does in COMMANDS.items()))
    try:
        checkout.check()
        importlib.import_module(f"companion.{name}").main()
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:  # most often during imports, which take seconds
        print("stopped", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
