"""What readers see: tables, figures, pages and the contents. Imports no torch, and pandas, matplotlib, nbconvert only when used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.report.captions import conditions
    from companion.report.comparisons import compared, steps
    from companion.report.figures import curves, figure, multiples, plain, style
    from companion.report.sources import line, source
    from companion.report.tables import label, published, table

__all__ = [
    "compared",
    "conditions",
    "curves",
    "figure",
    "label",
    "line",
    "multiples",
    "plain",
    "published",
    "source",
    "steps",
    "style",
    "table",
]
_HOMES = {
    "compared": "comparisons",
    "conditions": "captions",
    "curves": "figures",
    "figure": "figures",
    "label": "tables",
    "line": "sources",
    "multiples": "figures",
    "plain": "figures",
    "published": "tables",
    "source": "sources",
    "steps": "comparisons",
    "style": "figures",
    "table": "tables",
}


def __getattr__(name: str) -> Any:
    """Import on first use: running a notebook needs none of these, and they cost a second (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
