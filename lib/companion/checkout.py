"""Whether the running code is of the working directory's project: clones sharing an environment could be mixed up."""

from pathlib import Path

from companion import paths
from robust_features.settings import UserError


def check() -> None:
    """Raise UserError without a project, or if its code is not what runs. DVC's copies for experiments lie in it."""
    code, own = paths.LIBRARY, paths.ROOT / "lib"
    if not (paths.ROOT / "params.yaml").exists():
        raise UserError(f"{Path.cwd()}: neither this folder nor one around it holds the project; change to a checkout")
    if own.is_dir() and own.resolve() != code and not paths.ROOT.is_relative_to(code.parent):
        remedy = "run `make` there, which takes its own, or `pip install --editable .`"
        raise UserError(f"{paths.ROOT}: the code that runs is of another checkout, {code.parent}; {remedy}")
