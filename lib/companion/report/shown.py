"""Writing a report's files, and showing them in a notebook."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robust_features.files import atomic

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Shown:
    """A table or figure: HTML that a notebook displays, and the `rows` of its CSV."""

    html: str
    rows: "DataFrame | None" = None

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True)
class Conditions:
    """What results were measured with: a sentence or more, and with how many seeds each network was trained; see `conditions`."""

    text: str
    seeds: int

    @property
    def over(self) -> str:
        """What a 95 % interval is of."""
        if self.seeds > 1:
            return f"over the {self.seeds} seeds each network was trained with"
        return "over test images of one training: another seed may move a value by more"


def write(path: Path, content: "str | bytes | DataFrame") -> None:
    """Write `content` whole or not at all, with the same bytes on every system."""
    if not isinstance(content, str | bytes):
        content = content.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    with atomic(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
