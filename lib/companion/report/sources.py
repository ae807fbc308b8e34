"""The source of library functions on a page: the method itself, where it is used."""

import inspect
from collections.abc import Callable
from textwrap import dedent
from typing import Any

from IPython.display import Markdown


def source(*functions: Callable[..., Any] | type) -> Markdown:
    """The source of these functions or classes, each after the line that imports it."""
    parts = (f"# {each.__module__}\n{dedent(inspect.getsource(each))}" for each in functions)
    return Markdown("```python\n" + "\n\n".join(part.rstrip() for part in parts) + "\n```")
