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


def write(path: Path, content: "str | bytes | DataFrame") -> None:
    """Write `content` whole or not at all, with the same bytes on every system."""
    if not isinstance(content, str | bytes):
        content = content.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    with atomic(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
