"""The numbers by which two runs are compared: metrics.json, which `dvc metrics diff` and `dvc exp show` read."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from companion import paths
from companion.report.index import ledger
from companion.report.shown import write as write_whole

EXAMPLES = ("clean", "pgd", "l2")  # the attacks on a network that most groups have


def write(run: dict[str, Any]) -> Path:
    """Write reports/<scale>/metrics.json: how many claims have each verdict and every network's accuracy in percent."""
    words = Counter(verdict.word for found in ledger(run).values() for verdict in found)
    found = {"verdicts": dict(sorted(words.items())), "accuracy": accuracies(run)}
    target = file(run["scale"])
    write_whole(target, json.dumps(found, indent=1) + "\n")
    return target


def accuracies(run: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Group → member → example → percent of test images, of the first seed; without those that have not been made."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for group, settings in run["networks"].items():
        for member in settings["members"]:
            path = paths.DATA / "networks" / group / member / "evaluation" / "rows.csv"
            if not path.exists():
                continue
            rows = pd.read_csv(path, usecols=["example", "label", "prediction"])
            right = (rows["label"] == rows["prediction"]).groupby(rows["example"]).mean()
            shares = {name: round(100 * right[name], 2) for name in EXAMPLES if name in right}
            found.setdefault(group, {})[member] = shares
    return found


def file(scale: str) -> Path:
    """Where the numbers of a scale are."""
    return paths.REPORTS / scale / "metrics.json"


def verdicts(scale: str) -> str:
    """How many claims have each verdict, in one line; empty if the contents of this scale have not been made."""
    try:
        words = json.loads(file(scale).read_text("utf-8"))["verdicts"]
    except (OSError, ValueError, KeyError):
        return ""
    counts = "; ".join(f"{count} {word}" for word, count in sorted(words.items(), key=lambda item: -item[1]))
    return f"scale {scale}, {sum(words.values())} claims and controls: {counts}"
