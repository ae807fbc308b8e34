"""What attacks do to a network, as kept: one row per image and attack, and the adversarial images that pages show."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from companion import datasets, records
from robust_features.attacks import Attack
from robust_features.batches import ImageSet, as_float
from robust_features.evaluation import Attacked, accuracy_of, attack_all, crafted_in, predict
from robust_features.hardware import Hardware
from robust_features.networks import Network
from robust_features.settings import UserError, describe, nearest
from robust_features.statistics import wilson

GALLERY = 16  # images kept for an attack whose images no section reads


class Evaluation(dict[str, Attacked]):
    """Every attack on a network by name, and `clean`: no attack; `of` says on which network."""

    of = "this network"

    def __missing__(self, name: str) -> Attacked:
        raise UserError(f"{self.of}: no attack '{name}'{nearest(name, self)}; there are {', '.join(self)}")


def attack_each(
    attacks: Mapping[str, Attack],
    network: Network,
    images: ImageSet,
    *,
    hardware: Hardware,
    seed: int,
    whole: Collection[str] = (),
    report: Callable[[str], None] = print,
) -> Evaluation:
    """Every attack on all images. The images of attacks in `whole` are all kept, of the others the first GALLERY.

    An interrupted run goes on with the attacks that are not finished.
    """
    clean = predict(network, as_float(images.images), hardware=hardware).argmax(1)
    zero = torch.zeros(len(clean))
    found = Evaluation(clean=Attacked(clean, zero, zero))
    settings = [seed, {name: describe(attack) for name, attack in attacks.items()}]

    def attacked(name: str) -> dict[str, Tensor]:
        options = dict(hardware=hardware, seed=seed, report=lambda line: report(f"{name}: {line}"))
        kept = len(images) if name in whole else GALLERY
        return vars(attack_all(attacks[name], network, images, images_kept=kept, **options))

    seen = [images.images, images.labels, *network.state_dict().values()]
    with records.unfinished("attacks", settings, seen) as once:
        for name, attack in attacks.items():
            started = time.perf_counter()
            found[name] = Attacked(**once(name, partial(attacked, name)))
            right = (found[name].predictions == images.labels).float().mean()
            seconds, precision = time.perf_counter() - started, crafted_in(attack, network, hardware)
            report(f"{name}: {right:.1%} of {len(images)} still right  ({seconds:.1f} s in {precision})")
    return found


def save(
    folder: Path, found: Evaluation, attacks: Mapping[str, Attack], labels: Tensor, precision: Mapping[str, str]
) -> None:
    """Write rows.csv (example, image, label, prediction, l2, linf), kept images and attacks' settings to a folder."""
    parts = [
        pd.DataFrame({"label": labels, "prediction": attacked.predictions, "l2": attacked.l2, "linf": attacked.linf})
        .rename_axis("image")
        .reset_index()
        .assign(example=name)
        for name, attacked in found.items()
    ]
    images = {name: attacked.images for name, attacked in found.items() if attacked.images is not None}
    card = {"attacks": {name: describe(attack) for name, attack in attacks.items()}, "precision": dict(precision)}
    records.save(folder, images, card, rows=pd.concat(parts)[["example", "image", "label", "prediction", "l2", "linf"]])


def load(member: str) -> Evaluation:
    """The attacks on a member <group>/<name>."""
    folder = records.folder("evaluation", member)
    images = records.load(folder).tensors
    columns = ("prediction", "l2", "linf")
    with records.of_this_version(folder):
        parts = records.rows(folder, floats=["l2", "linf"]).groupby("example", sort=False)
        found = Evaluation(
            (name, Attacked(*(torch.tensor(part[column].to_numpy()) for column in columns), images.get(name)))
            for name, part in parts
        )
    found.of = member
    return found


def row(result: Attacked, clean: Attacked, labels: Tensor) -> dict[str, float]:
    """Accuracy and its interval (percent), mean L2 and L∞ norm (pixels in [0, 1]) of images that the attack fooled."""
    fooled = (clean.predictions == labels) & (result.predictions != labels)
    accuracy = asdict(accuracy_of(result.predictions, labels))
    return accuracy | {"l2": result.l2[fooled].mean().item(), "linf": result.linf[fooled].mean().item()}


def measures(members: Mapping[str, Mapping[str, str]], names: Collection[str]) -> pd.DataFrame:
    """Rows of Tables 3 and 4 of Kim et al. for members, id → dimensions, and attacks on them: accuracy, mean norms."""
    rows = []
    for member, dimensions in members.items():
        found, labels = load(member), datasets.load(dimensions["dataset"], "test").labels
        for name in [name for name in names if name in found]:
            measured = row(found[name], found["clean"], labels)
            l2, linf = measured.pop("l2"), 255 * measured.pop("linf")
            for measure, values in (("accuracy (%)", measured), ("L2", {"value": l2}), ("L∞ · 255", {"value": linf})):
                rows.append({**dimensions, "example": name, "measure": measure, **values})
    return pd.DataFrame(rows)


def across(networks: Mapping[str, Network], sets: Mapping[str, ImageSet], *, hardware: Hardware) -> pd.DataFrame:
    """Accuracy of every network on every set of images: classifier, test set, value, low, high, n in percent."""
    return pd.DataFrame(
        {"classifier": name, "test set": title, **asdict(accuracy_of(logits.argmax(1), images.labels))}
        for name, network in networks.items()
        for title, images in sets.items()
        for logits in [predict(network, as_float(images.images), hardware=hardware)]
    )


def along_norm(found: Evaluation, labels: Tensor, *, norm: Literal["l2", "linf"], radii: Tensor) -> pd.DataFrame:
    """Accuracy if only perturbations up to each radius count, per attack: example, radius, value, low, high, n."""
    right = found["clean"].predictions == labels
    rows = []
    for name, result in found.items():
        size = torch.where(result.predictions != labels, getattr(result, norm), torch.inf)
        for radius in radii.tolist():
            interval = wilson(int((right & (size > radius)).sum()), len(labels))
            rows.append({"example": name, "radius": radius, **asdict(interval)})
    return pd.DataFrame(rows)
