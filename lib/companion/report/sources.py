"""The source of library functions on a page: the method itself, shown where it is used."""

import inspect
from collections.abc import Callable
from textwrap import dedent
from typing import Any

from IPython.display import Markdown


def source(*functions: Callable[..., Any] | type) -> Markdown:
    """The source of these functions or classes, each after the line that imports it."""
    parts = (f"# {each.__module__}\n{dedent(inspect.getsource(each))}" for each in functions)
    return Markdown("```python\n" + "\n\n".join(part.rstrip() for part in parts) + "\n```")


def line(function: Callable[..., Any], holds: str) -> str:
    """The one line of a function's source that holds these words, without its indent.

    Raises ValueError unless there is exactly one: what is shown beside a paper's step must not drift from the code."""
    found = [each.strip() for each in inspect.getsource(function).splitlines() if holds in each]
    if len(found) != 1:
        raise ValueError(f"{function.__qualname__} has {len(found)} lines with {holds!r}, not one")
    return found[0]
