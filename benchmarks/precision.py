"""Whether bfloat16 changes what is reported: python -m benchmarks.precision [--photographs].

Every defended network of params.yaml's run, after `make reproduce`, is attacked by PGD in float32 and in bfloat16, and
in float32 from another random start, which is the yardstick; predictions are float32. Those of plain adversarial
training are also trained anew in both, with ten seeds each. With --photographs the network is a VGG-16 of width 1/4
trained here, and all 10,000 test images of CIFAR-10 are attacked: some two hours on one busy core with matrix units.
Writes benchmarks/results/precision/<scale or cifar10>.json. A CPU without bfloat16 units emulates them, at a tenth of
the speed.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from benchmarks.run import RESULTS, commit, machine, versions
from companion import datasets, evaluations, params, trained
from companion.datasets import Cifar, ImageSet
from companion.params import Run
from companion.paths import ROOT
from robust_features import evaluation, training
from robust_features.attacks import PGD
from robust_features.batches import Augmentation
from robust_features.files import atomic
from robust_features.hardware import Hardware, HardwareSettings, choose
from robust_features.networks import VGG16, Network
from robust_features.training import Adam, OneCycle, Training
from robust_features.training.objectives import Adversarial

SEEDS = range(10)
PHOTOGRAPHS = Training(
    dataset="cifar10",
    network=VGG16(width=0.25),
    objective=Adversarial(attack=PGD(epsilon="8/255", step_size="8/255", steps=1)),
    optimiser=Adam(learning_rate=2e-3),
    schedule=OneCycle(),
    epochs=8,
    augmentation=Augmentation(padding=4, flip=True),
)


@dataclass(frozen=True)
class Case:
    """A trained network, what it is trained by, the attack on it, and whether it is also trained anew."""

    model: str
    network: Network
    settings: Training
    splits: dict[str, ImageSet]
    attack: PGD
    anew: bool


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.precision")
    parser.add_argument("--photographs", action="store_true", help="CIFAR-10 instead of the networks of the run")
    if parser.parse_args().photographs:
        name, exact = "cifar10", choose(HardwareSettings(precision="fp32", threads=1))
        cases = [photographs(exact)]
    else:
        run = params.load()
        name, exact = run.scale, replace(choose(run.hardware), precision="fp32")
        cases = defended(run, exact)
    found = {"hardware": machine(exact), "versions": versions(), "commit": commit(ROOT), "scale": name}
    found |= {"results": [], "training": []}
    for case in cases:
        found["results"] += attacks(case, exact)
        found["training"] += trainings(case, exact) if case.anew else []
    (RESULTS / "precision").mkdir(parents=True, exist_ok=True)
    with atomic(RESULTS / "precision" / f"{name}.json") as partial:
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def defended(run: Run, exact: Hardware) -> Iterator[Case]:
    """The networks of the run that are trained adversarially."""
    plain = run.dimensions("kim/", "adversarial")
    for member in run.dimensions("kim/", "adversarial", "trades", "mart"):
        group, settings = run.networks[member.rpartition("/")[0]], run.members("kim/")[member]
        splits = {name: datasets.load(settings.dataset, name) for name in ("train", "validation", "test")}
        network = trained.load(member, hardware=exact)
        yield Case(member, network, settings, splits, group.attacks["pgd"], member in plain)


def photographs(exact: Hardware) -> Case:
    """A network trained on 4,000 images of CIFAR-10."""
    splits = datasets.read(Cifar(kind="cifar10", validation=500, train=4000), seed=0)
    network = training.train(splits, PHOTOGRAPHS, hardware=exact).network
    attack = PGD(epsilon="8/255", step_size="2/255", steps=10)
    return Case("cifar10/vgg16/adversarial", network, PHOTOGRAPHS, splits, attack, True)


def attacks(case: Case, exact: Hardware) -> Iterator[dict[str, Any]]:
    """A row a precision: accuracy under PGD, and how many images are right or wrong otherwise than in float32."""
    half, test = replace(exact, precision="bf16"), case.splits["test"]
    first = None
    for name, (hardware, seed) in {"fp32": (exact, 0), "bf16": (half, 0), "fp32, other start": (exact, 1)}.items():
        found = evaluation.attack_all(case.attack, case.network, test, hardware=hardware, seed=seed).predictions
        right = found == test.labels
        first = right if first is None else first
        yield {"model": case.model, "precision": name, **_accuracy(found, test), "other": int((right != first).sum())}


def trainings(case: Case, exact: Hardware) -> Iterator[dict[str, Any]]:
    """A row a precision, seed and example (clean, pgd): accuracy of the network trained so, measured in float32."""
    test = case.splits["test"].take(slice(2000))
    for seed in SEEDS:
        for precision in ("fp32", "bf16"):
            hardware = replace(exact, precision=precision)
            network = training.train(case.splits, replace(case.settings, seed=seed), hardware=hardware).network
            found = evaluations.attack_each({"pgd": case.attack}, network, test, hardware=exact, seed=0)
            for example, result in found.items():
                row = {"model": case.model, "precision": precision, "seed": seed, "example": example}
                yield row | _accuracy(result.predictions, test)


def _accuracy(predictions: Tensor, test: ImageSet) -> dict[str, float]:
    accuracy = vars(evaluation.accuracy_of(predictions, test.labels))
    print(f"{accuracy['value']:.2f} %", flush=True)
    return accuracy


if __name__ == "__main__":
    main()
