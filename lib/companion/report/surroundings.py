"""Keeping out what a user's machine adds to a kernel or a page: settings of Python, IPython, Jupyter, matplotlib."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from companion.paths import LIBRARY

WARM = "COMPANION_WARM"  # names the socket of the process that kernels are forked from, if there is one
THEIRS = ("IPYTHON", "JUPYTER", "MATPLOTLIB", "MPL", "PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONWARNINGS")


@contextmanager
def apart(cache: Path) -> Iterator[Path]:
    """The environment in which kernels run and pages are rendered, the same for every user; yields its folder.

    `cache` keeps matplotlib's list of fonts, which takes seconds to make; no home that can be written to is needed."""
    before = dict(os.environ)
    ours = {name: value for name, value in before.items() if not name.startswith(THEIRS)}
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a kernel may write to it until it has ended
        ours |= {name: f"{folder}/{name}" for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
        ours |= {"JUPYTER_RUNTIME_DIR": folder, "JUPYTER_PREFER_ENV_PATH": "1"}
        if before.get(WARM):
            ours["JUPYTER_DEFAULT_PROVISIONER_NAME"] = "warm"
        ours |= {"MPLCONFIGDIR": str(cache), "MATPLOTLIBRC": os.devnull}
        ours |= {"PYTHONPATH": str(LIBRARY), "PYTHONUTF8": "1"}
        if (LIBRARY / "share" / "jupyter").is_dir():  # in a bundle, which has Jupyter beside the library
            ours["JUPYTER_PATH"] = str(LIBRARY / "share" / "jupyter")
        ours.setdefault("GOMP_SPINCOUNT", "0")  # threads that spin for work stall each other on shared cores
        try:
            _replace(ours)
            yield Path(folder)
        finally:
            _replace(before)


def channel(folder: Path) -> dict[str, str]:
    """How to reach a kernel: through files in `folder` or, if these are impossible, through ports of this machine.

    A socket's name may have about a hundred bytes, which a long TMPDIR exceeds; some file systems have no sockets."""
    place = {"connection_file": f"{folder}/kernel"}
    try:
        with socket.socket(socket.AF_UNIX) as trial:
            trial.bind(f"{folder}/kernel-ipc-0")  # as long as the names that jupyter_client will choose
        return {"transport": "ipc", **place}
    except (AttributeError, OSError):  # AttributeError: Windows
        return {"transport": "tcp", **place}


def _replace(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
