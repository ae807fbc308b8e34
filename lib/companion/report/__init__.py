"""What readers see: tables, figures, pages, contents. Imports no torch; pandas, matplotlib, nbconvert only if used."""

from importlib import import_module
from typing import Any

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
__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import on first use: running a notebook needs none of these, and they cost a second (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
