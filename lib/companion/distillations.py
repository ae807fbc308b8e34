"""What the bottleneck says of a network on clean and attacked images: computed once, stored, read as rows of tables."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Generator, Tensor

from companion import records
from robust_features.bottleneck import Bottleneck, distil
from robust_features.evaluation import accuracy_of, decide, features
from robust_features.hardware import Hardware
from robust_features.networks import Network
from robust_features.settings import describe


@dataclass(frozen=True)
class Distilled:
    """σ of sets of images for several given labels, and the classes predicted from the features that follow.

    `tensors` by name: given/<label>, variance/<distilled>, sigma|robust/<distilled>/<label>. `rows`, one per image:
    example, distilled (the set that the index was found on), given, features (Int, R, NR), image, prediction.
    """

    tensors: Mapping[str, Tensor]
    rows: pd.DataFrame


def distil_examples(
    network: Network,
    examples: Mapping[str, Tensor],
    labels: Tensor,
    settings: Bottleneck,
    *,
    hardware: Hardware,
    seed: int,
    report: Callable[[str], None] = print,
) -> Distilled:
    """Channel indices and predictions for sets of (N, C, H, W) images, `clean` among them (Kim et al. 2021, Sec. 3).

    For the clean images, σ is found for three given labels: `true` (Table 1), `predicted` and `random` (controls), and
    the index is applied to all examples; `shuffled` is the true index with its channels permuted in every image
    (control). For each attacked set, σ is found anew for the `true` and for the `predicted` label (Table 2). Raises
    ValueError without `clean`.
    """
    if "clean" not in examples:
        raise ValueError(
            f"examples must hold the images as they are, under `clean`; found {', '.join(examples) or 'none'}"
        )
    z = {name: features(network, images, hardware=hardware) for name, images in examples.items()}
    seen = {name: decide(network, z[name], hardware=hardware) for name in z}
    rows = [_rows(seen[name], example=name, distilled="", given="", features="Int") for name in z]
    classes = network.head(z["clean"][:1].to(hardware.device)).shape[1]
    random = torch.randint(classes, labels.shape, generator=Generator().manual_seed(seed))
    given = {"true": labels, "predicted": seen["clean"], "random": random}
    tensors = {f"given/{label}": target for label, target in given.items()}
    started, total = time.perf_counter(), len(given) + 2 * (len(z) - 1)

    def apply(robust: Tensor, name: str, distilled: str, label: str) -> None:
        z_r = z[name] * robust[:, :, None, None]
        for part, kept in (("R", z_r), ("NR", z[name] - z_r)):
            taken_for = decide(network, kept, hardware=hardware)
            rows.append(_rows(taken_for, example=name, distilled=distilled, given=label, features=part))

    def judge(name: str, label: str, target: Tensor) -> Tensor:
        generator = Generator().manual_seed(seed)
        found = distil(network, z[name], target, settings, hardware=hardware, generator=generator)
        tensors[f"sigma/{name}/{label}"], tensors[f"robust/{name}/{label}"] = found.sigma, found.robust
        tensors[f"variance/{name}"] = found.variance
        finished, seconds = sum("sigma" in key for key in tensors), time.perf_counter() - started
        report(f"{name}, {label} label: {seconds:.1f} s, {seconds / finished * (total - finished):.0f} s left")
        return found.robust

    for label, target in given.items():
        robust = judge("clean", label, target)
        for name in z:
            apply(robust, name, "clean", label)
    for name in z:
        apply(shuffled(tensors["robust/clean/true"], seed), name, "clean", "shuffled")
    for name in [name for name in z if name != "clean"]:
        for label, target in {"true": labels, "predicted": seen[name]}.items():
            apply(judge(name, label, target), name, name, label)
        apply(shuffled(tensors[f"robust/{name}/true"], seed), name, name, "shuffled")
    ordered = pd.concat(rows).sort_values(["example", "distilled", "given", "features", "image"], ignore_index=True)
    return Distilled(tensors, ordered)


def halves(
    network: Network,
    images: Tensor,
    settings: Bottleneck,
    *,
    hardware: Hardware,
    seed: int,
    given: Tensor | None = None,
) -> dict[str, Tensor]:
    """(N,) predictions for (N, C, H, W) images from all channels (Int), robust (R), others (NR), as many random as R.

    The channel index is found for the labels `given`, by default for what the network predicts: then no label leaks.
    """
    z = features(network, images, hardware=hardware)
    given = decide(network, z, hardware=hardware) if given is None else given
    generator = Generator().manual_seed(seed)
    robust = distil(network, z, given, settings, hardware=hardware, generator=generator).robust
    kept = {"Int": torch.ones_like(robust), "R": robust, "NR": ~robust, "random": shuffled(robust, seed)}
    return {name: decide(network, z * keep[:, :, None, None], hardware=hardware) for name, keep in kept.items()}


def save(folder: Path, found: Distilled, settings: Bottleneck) -> None:
    """Write tensors, rows.csv and settings to a folder."""
    records.save(folder, dict(found.tensors), {"bottleneck": describe(settings)}, rows=found.rows)


def load(member: str) -> Distilled:
    """What was saved for a member <group>/<name>."""
    folder = records.folder("distillation", member)
    return Distilled(records.load(folder).tensors, records.rows(folder))


def accuracies(members: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Rows of Table 1 for members, id → dimensions: example, given, features (Int, R, NR), value, low, high in %, n."""
    return _of_each(members, _accuracies)


def agreement(members: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Rows of Table 2: how often Z_r and Z_nr of an attacked image predict the attacked class, over fooled images."""
    return _of_each(members, _agreement)


def given_predicted(members: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """How often Z_r and Z_nr of clean images predict the label that the bottleneck was given."""
    return _of_each(members, _given_predicted)


def _of_each(
    members: Mapping[str, Mapping[str, str]], rows: Callable[[Distilled], Iterator[dict[str, Any]]]
) -> pd.DataFrame:
    return pd.DataFrame({**dimensions, **row} for id, dimensions in members.items() for row in rows(load(id)))


def _accuracies(found: Distilled) -> Iterator[dict[str, Any]]:
    """Accuracies with the indices found on the clean images, and without one."""
    labels = found.tensors["given/true"]
    of_clean = found.rows.query("distilled in ('', 'clean')")
    for (example, given, part), predictions in _predictions(of_clean, "example", "given", "features"):
        share = accuracy_of(predictions, labels)
        yield {"example": example, "given": given or "true", "features": part, **asdict(share)}


def _agreement(found: Distilled) -> Iterator[dict[str, Any]]:
    """Agreement for the indices found on the attacked images themselves."""
    whole = found.rows.query("features == 'Int'")
    seen = {example: predictions for (example,), predictions in _predictions(whole, "example")}
    anew = found.rows.query("features != 'Int' and example == distilled and example != 'clean'")
    for (example, given, part), predictions in _predictions(anew, "example", "given", "features"):
        fooled = seen[example] != found.tensors["given/true"]
        share = accuracy_of(predictions[fooled], seen[example][fooled])
        yield {"example": example, "given": given, "features": part, **asdict(share)}


def _given_predicted(found: Distilled) -> Iterator[dict[str, Any]]:
    clean = found.rows.query("example == 'clean' and given in ('true', 'predicted', 'random')")
    for (given, part), predictions in _predictions(clean, "given", "features"):
        share = accuracy_of(predictions, found.tensors[f"given/{given}"])
        yield {"given": given, "features": part, **asdict(share)}


def _predictions(rows: pd.DataFrame, *keys: str) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """(N,) predictions of every combination of the keys."""
    for values, part in rows.groupby([*keys], sort=False):
        yield values, torch.tensor(part["prediction"].to_numpy())


def _rows(predictions: Tensor, **names: str) -> pd.DataFrame:
    return pd.DataFrame({"image": range(len(predictions)), "prediction": predictions.tolist()}).assign(**names)


def shuffled(robust: Tensor, seed: int) -> Tensor:
    """As many channels in every image, but chosen at random."""
    order = torch.rand(robust.shape, generator=Generator().manual_seed(seed)).argsort(1)
    return robust.gather(1, order)
