"""Results that took more than minutes are committed: reports/published/<scale>/, with a manifest describing them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ruamel.yaml import YAML

from companion import paths
from robust_features.files import atomic, sha256
from robust_features.settings import UserError


def publish(
    run: dict[str, Any],
    provenance: dict[str, Any],
    source: Path | None = None,
    lock: dict[str, Any] | None = None,
    more: Callable[[Path], None] | None = None,
) -> Path:
    """Copy reports/<scale>/ to reports/published/<scale>/ with manifest.json: provenance, parameters, files' SHA-256.

    `source` is another folder to copy, `lock` the entries of dvc.lock that tell from which code, settings and data it
    was made; `more` writes what else is published to the folder that it is given. Raises UserError if there is no
    report yet."""
    source, target = source or paths.REPORTS / run["scale"], paths.REPORTS / "published" / run["scale"]
    if not any(source.glob("*")):
        raise UserError(f"{source} holds no report yet: run `make reproduce SCALE={run['scale']}` first")
    with atomic(target) as partial:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(".*"))
        for page in partial.rglob("*.html"):
            page.write_text(_within(_deeper(page.read_text("utf-8")), page), "utf-8")
        if more:
            more(partial)
        if lock:
            with (partial / "dvc.lock").open("w", encoding="utf-8") as file:
                YAML().dump(lock, file)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sums = {path.relative_to(partial).as_posix(): sha256(path) for path in files}
        manifest = {"provenance": provenance, "params": run, "files": sums}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return target


def locked(project: Path) -> dict[str, Any]:
    """dvc.lock of a project, except for stages that are not up to date or that the chosen scale does not have."""
    from dvc.repo import Repo  # takes seconds to import

    with Repo(str(project)) as repo:
        finished = {stage.addressing for stage in repo.index.stages} - {*repo.status()}
    lock = YAML(typ="safe").load(project / "dvc.lock")
    return lock | {"stages": {name: entry for name, entry in lock["stages"].items() if name in finished}}


def _within(html: str, page: Path) -> str:
    """A page without links to files that are not published, such as the sections of papers that have not been run."""

    def kept(link: re.Match[str]) -> str:
        place = unquote(re.split("[?#]", link[1])[0])
        return link[0] if not place or ":" in place or (page.parent / place).exists() else ""

    return re.sub(r' href="(?!(?:\.\./){2,}index\.html)([^"]*)"', kept, html)  # the first page is not made yet


def _deeper(html: str) -> str:
    """A page one folder further down: its link to the first page; links to other scales, maybe absent, are removed."""
    html = html.replace(
        'data-home href="', 'data-home="published" href="../'
    )  # once, even if it is published again with others
    return re.sub(r'<nav class="switch".*?</nav>\n', "", html, flags=re.DOTALL)
