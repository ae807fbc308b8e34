"""Transfer: images made adversarial to sources, shown to victims (Springer et al. 2021, Sec. 5.2; Ilyas et al. 2019, Sec. 3.3)."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any

import pandas as pd
from pydantic import Field
from torch import Generator, Tensor

from robust_features import datasets, noise, store, training
from robust_features.attacks import PGD
from robust_features.evaluation import GALLERY, attack_all, crafted_in, predict
from robust_features.families import Family
from robust_features.hardware import Hardware
from robust_features.paths import DATA
from robust_features.settings import describe, nearest, settings
from robust_features.statistics import wilson


@settings
class Transfer:
    """Every member of the family `sources` attacked by each of `attacks`, every member of `victims` shown what came of it."""

    dataset: str
    sources: str
    victims: str
    attacks: Annotated[dict[str, PGD], Field(min_length=1)]

    def problem(self, families: Mapping[str, Any]) -> str:
        """What it refers to that is not there; empty if nothing."""
        for field in ("sources", "victims"):
            if (name := getattr(self, field)) not in families:
                return f"{field}: no family '{name}'{nearest(name, families)}"
        return ""


def make(
    id: str,
    transfer: Transfer,
    families: Mapping[str, Family],
    *,
    hardware: Hardware,
    seed: int,
    report: Callable[[str], None] = print,
) -> None:
    """Attack the test images through every source; write every victim's predictions to data/transfers/<id>/.

    Targeted attacks aim at a random wrong class of each image, the same for all sources. An interrupted run goes on with the
    sources and attacks that are not finished. Names: labels, targets, <source>/<attack>/<victim> with the source as its own
    victim `itself`, and the first GALLERY <source>/<attack>/images.
    """
    images = datasets.load(transfer.dataset, "test")
    targets = wrong_classes(images.labels, len(images.classes), seed)
    sources, victims = (
        {name: training.load(f"{family}/{name}", hardware=hardware)[0] for name in families[family].trainings}
        for family in (transfer.sources, transfer.victims)
    )
    weights = [weight for network in (*sources.values(), *victims.values()) for weight in network.state_dict().values()]
    unfinished = store.interrupted("transfer", [describe(transfer), seed], [images.images, targets, *weights])
    found = {"labels": images.labels, "targets": targets}
    for source, network in sources.items():
        for name, attack in transfer.attacks.items():
            place = unfinished / f"{source}-{name}"
            if store.kept(place) is None:
                aimed = replace(images, labels=targets) if attack.targeted else images
                options = dict(hardware=hardware, seed=seed, keep=len(images), report=report)
                adversarial = attack_all(attack, network, aimed, **options).images
                shown = {"itself": network, **victims}
                logits = {victim: predict(each, adversarial, hardware=hardware) for victim, each in shown.items()}
                part = {victim: values.argmax(1) for victim, values in logits.items()}
                store.save(place, part | {"images": adversarial[:GALLERY]}, {})
            found |= {f"{source}/{name}/{key}": tensor for key, tensor in store.load(place).tensors.items()}
            report(f"{source}, {name}")
    precision = {
        f"{source}/{name}": crafted_in(attack, network, hardware)
        for source, network in sources.items()
        for name, attack in transfer.attacks.items()
    }
    store.save(DATA / "transfers" / id, found, {"transfer": describe(transfer), "seed": seed, "precision": precision})
    shutil.rmtree(unfinished)


def load(id: str) -> dict[str, Tensor]:
    """What `make` wrote, by name."""
    return store.load(DATA / "transfers" / id).tensors


def successes(id: str, transfer: Transfer) -> pd.DataFrame:
    """A row a source, attack and victim: percent of all test images that are misclassified or, targeted, taken for the target."""
    return pd.DataFrame(_successes(load(id), transfer))


def wrong_classes(labels: Tensor, classes: int, seed: int) -> Tensor:
    """(N,) for each image a class other than its own, uniformly."""
    keys = noise.image_keys(len(labels), Generator().manual_seed(seed))
    return (labels + 1 + (noise.uniform(keys, (1,)).squeeze(1) * (classes - 1)).long()) % classes


def _successes(found: dict[str, Tensor], transfer: Transfer) -> Iterator[dict[str, Any]]:
    for name, predictions in found.items():
        match name.split("/"):
            case [source, attack, victim] if victim != "images":
                targeted = transfer.attacks[attack].targeted
                hits = predictions == found["targets"] if targeted else predictions != found["labels"]
                yield dict(source=source, attack=attack, victim=victim) | asdict(wilson(int(hits.sum()), len(hits)))
