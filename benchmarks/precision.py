"""Whether bfloat16 changes what is reported: python -m benchmarks.precision, after `make reproduce`.

Every defended network of params.yaml's run is attacked by PGD in float32 and in bfloat16, and in float32 from another
random start, which is the yardstick. Those of plain adversarial training are also trained anew in both, with three seeds
in float32 as the yardstick. Writes benchmarks/results/precision/<scale>.json. A CPU without bfloat16 units emulates them,
at a tenth of the speed or less: half an hour at quick scale.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks.run import RESULTS, commit, machine, versions
from robust_features import datasets, evaluation, params, training
from robust_features.datasets import ImageSet
from robust_features.files import atomic
from robust_features.hardware import Hardware, choose
from robust_features.params import Run
from robust_features.paths import ROOT


def main() -> None:
    """Measure and write."""
    run = params.load()
    exact = replace(choose(run.hardware), precision="fp32")
    found = {"hardware": machine(exact), "versions": versions(), "commit": commit(ROOT), "scale": run.scale}
    found |= {"results": list(attacks(run, exact)), "training": list(trainings(run, exact))}
    (RESULTS / "precision").mkdir(parents=True, exist_ok=True)
    with atomic(RESULTS / "precision" / f"{run.scale}.json") as partial:
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def attacks(run: Run, exact: Hardware) -> Iterator[dict[str, Any]]:
    """A row a defended network and precision: accuracy under PGD."""
    for model in run.dimensions("adversarial", "trades", "mart"):
        network, _ = training.load(model, hardware=exact)
        test, attack = datasets.load(run.models[model].dataset, "test"), run.attacks_on(model)["pgd"]
        ways = {"fp32": (exact, 0), "bf16": (replace(exact, precision="bf16"), 0), "fp32, other start": (exact, 1)}
        for name, (hardware, more) in ways.items():
            found = evaluation.attack_all(attack, network, test, hardware=hardware, seed=run.seed + more)
            yield {"model": model, "precision": name, **_accuracy(found.predictions, test)}


def trainings(run: Run, exact: Hardware) -> Iterator[dict[str, Any]]:
    """A row a network, precision, seed and example (clean, pgd): accuracy of the network trained so, measured in float32."""
    for model in run.dimensions("adversarial"):
        settings = run.models[model]
        splits = {name: datasets.load(settings.dataset, name) for name in ("train", "validation", "test")}
        for precision, seed in (("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 0)):
            hardware = replace(exact, precision=precision)
            network = training.train(splits, replace(settings, seed=seed), hardware=hardware).network
            options = dict(hardware=exact, seed=run.seed)
            found = evaluation.attack_each({"pgd": run.attacks_on(model)["pgd"]}, network, splits["test"], **options)
            for example, result in found.items():
                row = {"model": model, "precision": precision, "seed": seed, "example": example}
                yield row | _accuracy(result.predictions, splits["test"])


def _accuracy(predictions: Tensor, test: ImageSet) -> dict[str, float]:
    accuracy = vars(evaluation.accuracy_of(predictions, test.labels))
    print(f"{accuracy['value']:.2f} %", flush=True)
    return accuracy


if __name__ == "__main__":
    main()
