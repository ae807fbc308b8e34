"""Transfer: images adversarial to sources shown to victims (Springer et al. 2021, Sec. 5.2; Ilyas et al., Sec. 3.3)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated

import pandas as pd
from pydantic import Field
from torch import Generator, Tensor

from companion import datasets, records, trained
from companion.evaluations import GALLERY
from companion.paths import made, outputs
from robust_features import noise
from robust_features.attacks import PGD
from robust_features.batches import ImageSet
from robust_features.evaluation import attack_all, predict
from robust_features.hardware import Hardware
from robust_features.networks import Network
from robust_features.settings import describe, settings
from robust_features.statistics import wilson


@settings
class Transfer:
    """Every member of group `sources` attacked by each of `attacks`, the results shown to every member of `victims`."""

    dataset: str
    sources: str
    victims: str
    attacks: Annotated[dict[str, PGD], Field(min_length=1)]


def make(id: str, transfer: Transfer, *, hardware: Hardware, seed: int, report: Callable[[str], None] = print) -> None:
    """Attack the test images through every source; write data/transfers/<id>/: every victim's predictions, some images.

    Targeted attacks aim at a random wrong class of each image, the same for all sources. rows.csv has one row per
    source, attack, victim (the source too, as `itself`) and image. An interrupted run goes on with the sources and
    attacks not finished.
    """
    images = datasets.load(transfer.dataset, "test")
    targets = wrong_classes(images.labels, len(images.classes), seed)
    sources, victims = (
        {name: trained.load(f"{group}/{name}", hardware=hardware) for name in records.members(group)}
        for group in (transfer.sources, transfer.victims)
    )
    weights = [weight for network in (*sources.values(), *victims.values()) for weight in network.state_dict().values()]
    rows, kept = [], {}
    options = dict(hardware=hardware, seed=seed, report=report)
    with records.unfinished("transfer", [describe(transfer), seed], [images.images, targets, *weights]) as once:
        for source, network in sources.items():
            for name, attack in transfer.attacks.items():
                shown = partial(through, network, attack, images, targets, victims, **options)
                found = dict(once(f"{source}-{name}", shown))
                kept[f"{source} {name}"] = found.pop("images")
                for victim in ("itself", *victims):
                    each = {
                        "image": range(len(images)),
                        "prediction": found[victim].tolist(),
                        "target": targets.tolist(),
                    }
                    rows.append(
                        pd.DataFrame(each).assign(
                            source=source, attack=name, victim=victim, label=images.labels.tolist()
                        )
                    )
                report(f"{source}, {name}")
        columns = ["source", "attack", "victim", "image", "label", "target", "prediction"]
        card = {"transfer": describe(transfer), "seed": seed}
        records.save(outputs() / "transfers" / id, kept, card, rows=pd.concat(rows)[columns])


def through(
    source: Network,
    attack: PGD,
    images: ImageSet,
    targets: Tensor,
    victims: Mapping[str, Network],
    *,
    hardware: Hardware,
    seed: int,
    report: Callable[[str], None] = print,
) -> dict[str, Tensor]:
    """What victims, and the source `itself`, predict for images attacked through it, (N,) each; the first `images`.

    A targeted attack aims at `targets`, (N,) classes; an untargeted one leads away from the images' labels.
    """
    aimed = replace(images, labels=targets) if attack.targeted else images
    options = dict(hardware=hardware, seed=seed, images_kept=len(images), report=report)
    adversarial = attack_all(attack, source, aimed, **options).images
    shown_to = {**victims, "itself": source}
    logits = {name: predict(network, adversarial, hardware=hardware) for name, network in shown_to.items()}
    return {name: part.argmax(1) for name, part in logits.items()} | {"images": adversarial[:GALLERY]}


def rows(id: str) -> pd.DataFrame:
    """What `make` wrote: source, attack, victim, image, label, target, prediction."""
    return records.rows(made(f"transfers/{id}"))


def images(id: str, source: str, attack: str) -> Tensor:
    """The first attacked images of a source, (GALLERY, C, H, W) in [0, 1]."""
    return records.load(made(f"transfers/{id}")).tensors[f"{source} {attack}"]


def successes(id: str, transfer: Transfer) -> pd.DataFrame:
    """One row per source, attack, victim: percent of all test images classified wrongly or, targeted, as the target."""
    return pd.DataFrame(_successes(rows(id), transfer))


def wrong_classes(labels: Tensor, classes: int, seed: int) -> Tensor:
    """(N,) for each image a class other than its own, uniformly."""
    keys = noise.image_keys(len(labels), Generator().manual_seed(seed))
    return (labels + 1 + noise.below(classes - 1, keys)) % classes


def _successes(found: pd.DataFrame, transfer: Transfer) -> Iterator[dict[str, object]]:
    for (source, attack, victim), part in found.groupby(["source", "attack", "victim"], sort=False):
        targeted = transfer.attacks[attack].targeted
        hits = part["prediction"] == part["target"] if targeted else part["prediction"] != part["label"]
        yield {"source": source, "attack": attack, "victim": victim} | asdict(wilson(int(hits.sum()), len(hits)))
