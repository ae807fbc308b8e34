"""How far a run of the engine is: a table in place on a terminal, plain lines in a log."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

TAIL = 4096  # bytes of a log in which its last line is searched


class Progress:
    """What runs, with the last line of each; how many stages are done; how long the rest took when it last ran."""

    def __init__(self, usual: Mapping[str, float]):
        self.usual, self.running = usual, {}
        self.done, self.begun = 0, time.time()
        self.left: set[str] = set()
        self.console = Console(highlight=False)
        self.live = (
            Live(console=self.console, get_renderable=self._table, refresh_per_second=1, transient=True)
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def planned(self, names: Sequence[str]) -> None:
        """These stages are to be run, or checked once what they need is there."""
        self.left = {*names}

    def dropped(self, name: str) -> None:
        """A stage need not run, or cannot."""
        self.left.discard(name)

    def started(self, name: str, log: Path) -> None:
        """A stage runs."""
        self.running[name] = (time.time(), log)
        if not self.live:
            self.said(f"{name}: started")

    def finished(self, name: str, how: str) -> None:
        """A stage is done."""
        self.running.pop(name, None)
        self.left.discard(name)
        self.done += 1
        self.said(f"{name}: done, {how}")

    def failed(self, name: str, why: str, log: Path) -> None:
        """A stage failed."""
        self.running.pop(name, None)
        self.said(f"{name}: failed, {why}; its log: {log}")
        for line in log.read_text("utf-8", "replace").splitlines()[-8:] if log.exists() else []:
            self.said(f"    {line}")

    def said(self, line: str) -> None:
        """A line for everyone."""
        self.console.print(line, markup=False, soft_wrap=True)

    def ended(self, failed: Mapping[str, str], skipped: Sequence[str]) -> None:
        """What failed, what was skipped because of it, and what to do."""
        if not failed:
            anew = f"{self.done} stages made anew, the others were up to date; {time.time() - self.begun:.0f} s"
            return self.said(anew if self.done else "Everything is up to date.")
        self.said(f"failed: {', '.join(failed)}")
        if skipped:
            self.said(f"skipped, because they need what failed: {', '.join(skipped)}")
        self.said("when the cause is gone, `make reproduce` goes on from here")

    def _table(self) -> Group:
        seconds = sum(self.usual.get(name, 0.0) for name in self.left) / max(1, len(self.running))
        title = f"{self.done} stages done, {len(self.left)} left, about {seconds / 60:.0f} minutes"
        table = Table(box=None, show_header=False)
        for name, (since, log) in self.running.items():
            table.add_row(name, f"{time.time() - since:.0f} s{self._of(name)}", _last_line(log)[:100])
        return Group(title, table)

    def _of(self, name: str) -> str:
        return f" of {self.usual[name]:.0f}" if name in self.usual else ""


def _last_line(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
