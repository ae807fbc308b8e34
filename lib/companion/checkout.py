"""Whether the running code belongs to the project in the working directory: clones that share an environment could be mixed up."""

from pathlib import Path

from companion import paths
from robust_features.settings import UserError


def check() -> None:
    """Raise UserError if there is no project, or if its code is not what runs. DVC's copies for experiments are inside it."""
    code, own = paths.LIBRARY, paths.ROOT / "lib"
    if not (paths.ROOT / "params.yaml").exists():
        raise UserError(f"{Path.cwd()}: neither this folder nor one around it holds the project; change to a checkout")
    if own.is_dir() and own.resolve() != code and not paths.ROOT.is_relative_to(code.parent):
        remedy = "run `make` there, which takes its own, or `pip install --editable .`"
        raise UserError(f"{paths.ROOT}: the code that runs is of another checkout, {code.parent}; {remedy}")
