"""A process that has imported others' packages and forks: stages and kernels start in a tenth of a second, not in five.

    python -m companion.warm NUMBER     serve at the socket that this file descriptor is, until standard input ends

On Linux only. This process never computes, for threads do not survive a fork, and never imports the project's own code,
which may change between two stages. Where there is a GPU it imports nothing: CUDA does not survive a fork either.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from jupyter_client.provisioning import LocalProvisioner

from companion.report.surroundings import WARM

# as a kernel sets when it starts; here matplotlib is imported earlier
BACKEND = "module://matplotlib_inline.backend_inline"
PACKAGES = (
    "ipykernel.kernelapp",
    "nbconvert",
    "papermill",
    "pydantic",
    "ruamel.yaml",
    "safetensors.torch",
    "seaborn",
    "sklearn.manifold",
    "torch._dynamo",
    "torchvision",
)
PYTHON = ["python", "-m"]  # the beginning of commands that need no new interpreter
PATIENCE = 10  # seconds between asking a process to end and ending it


class Process:
    """A command in a fork of the warm process, `python -m …` without a new interpreter; has what users need of Popen.

    It leads a session of its own, which ends when the process that asked for it is gone, however that ended. Raises
    OSError if no warm process listens."""

    stdin = stdout = stderr = None

    def __init__(self, address: str, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: int = 1):
        self.returncode: int | None = None
        self._watcher = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._watcher.connect(address)
        request = json.dumps({"command": list(command), "cwd": str(cwd), "env": dict(env)})
        socket.send_fds(self._watcher, [request.encode()], [output, output if output != 1 else 2])
        self.pid = int(self._watcher.recv(64) or 0)
        if not self.pid:
            raise OSError("the process that forks is gone")

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended. Raises subprocess.TimeoutExpired."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Pass a signal on, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._watcher], [], [], timeout)[0]:
            said = self._watcher.recv(64)
            self.returncode = int(said) if said else -signal.SIGKILL
            self._watcher.close()
        return self.returncode


class Provisioner(LocalProvisioner):
    """Kernels that are forked from the warm process if there is one, and started as usual otherwise."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Launch a kernel by its command, `python -m ipykernel_launcher …`."""
        try:
            cwd = Path(kwargs.get("cwd") or Path.cwd())
            self.process = Process(os.environ[WARM], [*PYTHON, *cmd[2:]], cwd=cwd, env=kwargs["env"])
        except (KeyError, OSError):
            return await super().launch_kernel(cmd, **kwargs)
        self.pid = self.pgid = self.process.pid
        self.cwd = cwd
        return self.connection_info


@contextmanager
def serving(env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A warm process for this block; yields what its users' environment must contain: nothing if there can be none."""
    if not hasattr(os, "pidfd_open"):  # another system than Linux
        yield {}
        return
    with TemporaryDirectory(prefix="warm") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        address = f"{folder}/socket"  # in a folder that only its owner may open
        try:
            os.pidfd_open(os.getpid())
            server.bind(address)
        except OSError:  # an old kernel; a name that is too long
            yield {}
            return
        server.listen()
        command = [sys.executable, "-m", "companion.warm", str(server.fileno())]
        options = {"stdin": subprocess.PIPE, "env": dict(env), "process_group": 0, "pass_fds": [server.fileno()]}
        with subprocess.Popen(command, **options) as process:
            server.close()
            try:
                yield {WARM: address}
            finally:
                process.terminate()  # each of those that it forked has its own watcher


def main(server: socket.socket) -> None:
    """Fork for everyone who asks; a fork becomes what was asked for."""
    request = _serve(server)
    if request is None:
        return
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), *request["files"])):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    command = request["command"]
    if command[:2] != PYTHON:
        os.execvp(command[0], command)
    for name in [name for name in sys.modules if name.split(".")[0] == "companion"]:
        del sys.modules[name]
    sys.argv, sys.path[0] = command[2:], request["cwd"]
    status = 1
    try:
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, int | None):
            status = end.code or 0
        else:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # unloading a thousand modules takes longer than most stages


def _serve(server: socket.socket) -> dict[str, Any] | None:
    """Import, and fork for all who ask. Returns in a fork what it is to become; at the end of standard input None."""
    with server:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how watchers ended
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            with connection:
                message, files, _, _ = socket.recv_fds(connection, 1 << 20, 2)
                request = json.loads(message) | {"files": files}
                if request["command"][:2] == PYTHON:
                    _import_packages()
                if os.fork() == 0:
                    server.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    child = os.fork()
                    if child == 0:
                        os.setsid()
                        return request
                    _watch(child, connection)
            for file in files:
                os.close(file)
    return None


def _import_packages() -> None:
    """What stages and kernels would import, each for itself."""
    if Path("/dev/nvidiactl").exists():
        return
    os.environ["MPLBACKEND"] = BACKEND
    # a kernel reads it when it is imported, and says more where there is none
    os.environ["JPY_PARENT_PID"] = str(os.getpid())
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # optional to jsonschema, 2 s to import
    for name in PACKAGES:
        importlib.import_module(name)


def _watch(child: int, connection: socket.socket) -> NoReturn:
    """Tell the one who asked which process it is and how it ended; end it if they are gone."""
    connection.send(str(child).encode())
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.killpg(child, signal.SIGTERM)
        if not select.select([ended], [], [], PATIENCE)[0]:
            os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
