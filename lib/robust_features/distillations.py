"""What the bottleneck says of one model on clean and attacked images: computed once, stored, and read as rows of tables."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Generator, Tensor

from robust_features import inputs, store
from robust_features.bottleneck import Bottleneck, distil
from robust_features.evaluation import decide, features
from robust_features.hardware import Hardware
from robust_features.models import Network, frozen
from robust_features.settings import describe
from robust_features.statistics import Interval, wilson


def distil_examples(
    network: Network,
    examples: dict[str, Tensor],
    labels: Tensor,
    settings: Bottleneck,
    *,
    hardware: Hardware,
    seed: int,
    report: Callable[[str], None] = print,
) -> dict[str, Tensor]:
    """Channel indices and predictions for every set of (N, C, H, W) images, `clean` among them (Kim et al. 2021, Sec. 3).

    Of the clean images, σ is found for three given labels: `true` (Table 1), `predicted` and `random` (controls), and the
    index is applied to all examples; `shuffled` is the true index with its channels permuted in every image (control). Of
    each attacked set, σ is found anew for the `true` and for the `predicted` label (Table 2).
    Raises ValueError if there are no `clean` images, and for what `inputs` refuses.
    Names: given/<label>, sigma|variance|robust/<distilled>/<label>, prediction/<example>[/<distilled>-<label>]/<Int|R|NR>.
    """
    if "clean" not in examples:
        raise ValueError(f"examples: no 'clean'; there are {', '.join(examples) or 'none'}")
    z = {name: features(network, images, hardware=hardware) for name, images in examples.items()}
    result = {f"prediction/{name}/Int": decide(network, z[name], hardware=hardware) for name in z}
    with frozen(network), torch.no_grad():
        classes = network.head(inputs.numbers(network, z["clean"][:1].to(hardware.device))).shape[1]
    given = {"true": labels, "predicted": result["prediction/clean/Int"]}
    random = torch.randint(classes, labels.shape, generator=Generator().manual_seed(seed))
    started, finished, total = time.perf_counter(), 0, 3 + 2 * (len(z) - 1)

    def apply(robust: Tensor, name: str, index: str) -> None:
        z_r = z[name] * robust[:, :, None, None]
        result[f"prediction/{name}/{index}/R"] = decide(network, z_r, hardware=hardware)
        result[f"prediction/{name}/{index}/NR"] = decide(network, z[name] - z_r, hardware=hardware)

    def judge(name: str, label: str, target: Tensor) -> Tensor:
        nonlocal finished
        generator = Generator().manual_seed(seed)
        found = distil(network, z[name], target, settings, hardware=hardware, generator=generator)
        result[f"sigma/{name}/{label}"], result[f"robust/{name}/{label}"] = found.sigma, found.robust
        result[f"variance/{name}"] = found.variance
        finished, seconds = finished + 1, time.perf_counter() - started
        report(f"{name}, {label} label: {seconds:.1f} s, {seconds / finished * (total - finished):.0f} s left")
        return found.robust

    for label, target in (given | {"random": random}).items():
        robust = judge("clean", label, target)
        result[f"given/{label}"] = target
        for name in z:
            apply(robust, name, f"clean-{label}")
    for name in z:
        apply(shuffled(result["robust/clean/true"], seed), name, "clean-shuffled")
    for name in z.keys() - {"clean"}:
        for label, target in {"true": labels, "predicted": result[f"prediction/{name}/Int"]}.items():
            apply(judge(name, label, target), name, f"{name}-{label}")
        apply(shuffled(result[f"robust/{name}/true"], seed), name, f"{name}-shuffled")
    return dict(sorted(result.items()))


def halves(
    network: Network,
    images: Tensor,
    settings: Bottleneck,
    *,
    hardware: Hardware,
    seed: int,
    given: Tensor | None = None,
) -> dict[str, Tensor]:
    """(N,) classes that (N, C, H, W) images have by all channels (Int), the robust (R), the others (NR), as many at random as R.

    The channel index is found for the labels `given`, by default for what the network predicts: then no label leaks.
    """
    z = features(network, images, hardware=hardware)
    given = decide(network, z, hardware=hardware) if given is None else given
    generator = Generator().manual_seed(seed)
    robust = distil(network, z, given, settings, hardware=hardware, generator=generator).robust
    kept = {"Int": torch.ones_like(robust), "R": robust, "NR": ~robust, "random": shuffled(robust, seed)}
    return {name: decide(network, z * keep[:, :, None, None], hardware=hardware) for name, keep in kept.items()}


def save(folder: Path, tensors: dict[str, Tensor], settings: Bottleneck) -> None:
    """Write the tensors to a folder, such as data/distillations/<id>/."""
    store.save(folder, tensors, {"bottleneck": describe(settings)})


def load(model_id: str) -> dict[str, Tensor]:
    """The tensors of a model."""
    return store.load(store.folder("distillations", model_id)).tensors


def accuracies(models: dict[str, dict[str, str]]) -> pd.DataFrame:
    """Rows of Table 1 for the models, id → dimensions: example, given, features (Int, R, NR), value, low, high, n in percent."""
    return pd.DataFrame(row for model, dimensions in models.items() for row in _accuracies(load(model), dimensions))


def agreement(models: dict[str, dict[str, str]]) -> pd.DataFrame:
    """Rows of Table 2: how often Z_nr of an attacked image predicts the attacked class, over images the attack fooled."""
    return pd.DataFrame(row for model, dimensions in models.items() for row in _agreement(load(model), dimensions))


def given_predicted(models: dict[str, dict[str, str]]) -> pd.DataFrame:
    """How often Z_r and Z_nr of clean images predict the label that the bottleneck was given."""
    return pd.DataFrame(
        {**dimensions, "given": label, "features": part}
        | asdict(_share(tensors[f"prediction/clean/clean-{label}/{part}"] == tensors[f"given/{label}"]))
        for model, dimensions in models.items()
        for tensors in [load(model)]
        for label in ("true", "predicted", "random")
        for part in ("R", "NR")
    )


def _accuracies(tensors: dict[str, Tensor], dimensions: dict[str, str]) -> Iterator[dict[str, Any]]:
    labels = tensors["given/true"]
    for key, predictions in tensors.items():
        match key.split("/"):
            case ["prediction", example, "Int"]:
                row = {"example": example, "given": "true", "features": "Int"}
            case ["prediction", example, index, part] if index.startswith("clean-"):
                row = {"example": example, "given": index.removeprefix("clean-"), "features": part}
            case _:
                continue
        yield dimensions | row | asdict(_share(predictions == labels))


def _agreement(tensors: dict[str, Tensor], dimensions: dict[str, str]) -> Iterator[dict[str, Any]]:
    labels = tensors["given/true"]
    for key, predictions in tensors.items():
        match key.split("/"):
            case ["prediction", example, index, "NR"] if index.startswith(f"{example}-") and example != "clean":
                attacked = tensors[f"prediction/{example}/Int"]
                fooled = attacked != labels
                row = {"example": example, "given": index.removeprefix(f"{example}-")}
                yield dimensions | row | asdict(_share(predictions[fooled] == attacked[fooled]))


def _share(hits: Tensor) -> Interval:
    return wilson(int(hits.sum()), len(hits))


def shuffled(robust: Tensor, seed: int) -> Tensor:
    """As many channels in every image, but chosen at random."""
    order = torch.rand(robust.shape, generator=Generator().manual_seed(seed)).argsort(1)
    return robust.gather(1, order)
