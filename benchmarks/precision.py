"""Whether bfloat16 changes what an attack reports: python -m benchmarks.precision, after `make reproduce`.

Every defended network of params.yaml's run is attacked by PGD in float32 and in bfloat16, and in float32 from another
random start, which is the yardstick. Writes benchmarks/results/precision/<scale>.json. A CPU without bfloat16 units
emulates them, at a tenth of the speed or less.
"""

import json
from dataclasses import replace

from benchmarks.run import RESULTS, commit, machine, versions
from robust_features import datasets, evaluation, params, training
from robust_features.files import atomic
from robust_features.hardware import choose
from robust_features.paths import ROOT


def main() -> None:
    run = params.load()
    exact = replace(choose(run.hardware), precision="fp32")
    rows = []
    for model in run.dimensions("adversarial", "trades", "mart"):
        network, _ = training.load(model, hardware=exact)
        test, attack = datasets.load(run.models[model].dataset, "test"), run.attacks_on(model)["pgd"]
        ways = {"fp32": (exact, 0), "bf16": (replace(exact, precision="bf16"), 0), "fp32, other start": (exact, 1)}
        for name, (hardware, more) in ways.items():
            found = evaluation.attack_all(attack, network, test, hardware=hardware, seed=run.seed + more)
            accuracy = vars(evaluation.accuracy_of(found.predictions, test.labels))
            rows.append({"model": model, "precision": name, **accuracy})
            print(f"{model} under PGD, {name}: {rows[-1]['value']:.2f} %")
    found = {"hardware": machine(exact), "versions": versions(), "commit": commit(ROOT), "scale": run.scale}
    (RESULTS / "precision").mkdir(parents=True, exist_ok=True)
    with atomic(RESULTS / "precision" / f"{run.scale}.json") as partial:
        partial.write_text(json.dumps(found | {"results": rows}, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
