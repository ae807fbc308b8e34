"""Datasets that a network makes of a dataset: robustified images, and images labelled with the class they were moved to.

A new one: its class with `__call__`, and its place in `Construction`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features import datasets, noise, store
from robust_features.attacks import PGD, Ball, ascend, l2
from robust_features.batches import as_float
from robust_features.datasets import ImageSet
from robust_features.evaluation import BATCH, side_by_side
from robust_features.files import atomic
from robust_features.hardware import Hardware
from robust_features.models import Network, folded
from robust_features.paths import DATA
from robust_features.settings import describe, nearest, settings


@dataclass(frozen=True)
class Constructed:
    """New images with their labels; of each, where it began and how far it came. All on the CPU, as the uint8 images are stored."""

    images: ImageSet
    began: Tensor  # (N,) int64, index of the image it began from
    l2: Tensor  # (N,) L2 distance from there, pixels in [0, 1]
    before: Tensor  # (N,) distance of representations, or the target's cross-entropy in nats, at the beginning
    after: Tensor  # (N,) the same at the end
    reached: Tensor  # (N,) bool: after is a tenth of before or less, or the network predicts the target


@settings
class Robustified:
    """From a random other image x₀, min ‖rep(x_r) − rep(x)‖₂ by steps of one L2 length in the pixel range; labelled as x.

    D_R and D_NR (Ilyas et al. 2019, Sec. 3.1) and R_ε (Springer et al. 2021, Sec. 3.3) differ in whose representation it is. An
    image rests once its distance is `enough` times the first; 0, the papers' way: never.
    """

    kind: Literal["robustified"] = "robustified"
    steps: PositiveInt = 400
    step_size: PositiveFloat = 0.05
    enough: NonNegativeFloat = 0.0

    def __call__(
        self, network: Network, images: ImageSet, *, hardware: Hardware, seed: int, batch_size: int = BATCH
    ) -> Constructed:
        """An image for each of `images`, the same whatever the batch size."""
        network, began = hardware.place(folded(network)), others(len(images), seed)

        def represent(x: Tensor) -> Tensor:
            return network.features(x, network.representation).float().flatten(1)

        def one_batch(first: int) -> tuple[Tensor, ...]:
            rows = slice(first, first + batch_size)
            wanted, start = (as_float(images.images[index].to(hardware.device)) for index in (rows, began[rows]))
            with hardware.autocast(), torch.no_grad():
                target = represent(wanted)
                before = (represent(start) - target).norm(dim=1)
                found = ascend(
                    represent,
                    lambda z, at: -(z - target[at]).norm(dim=1),
                    start,
                    ball=Ball("l2", inf),
                    step_size=self.step_size,
                    steps=self.steps,
                    stop=(lambda z, at: (z - target[at]).norm(dim=1) <= self.enough * before[at])
                    if self.enough
                    else None,
                )
                stored = _stored(found)
                after = (represent(as_float(stored)) - target).norm(dim=1)
            return stored, l2(as_float(stored) - start), before, after, after <= before / 10

        stored, distance, before, after, reached = _columns(one_batch, len(images), batch_size, hardware)
        made = ImageSet(stored, images.labels, images.classes, f"{images.name}, robustified")
        return Constructed(made, began, distance, before, after, reached)


@settings
class Relabelled:
    """Targeted adversarial images, labelled with their targets (Ilyas et al. 2019, Sec. 3.2; Springer et al. 2021, Sec. 3.2).

    `random`: one uniform class each, D_rand. `next`: the class after the true one, D_det and D_neg. `every`: all classes in
    turn, the true one among them, D_zero of Springer et al.
    """

    kind: Literal["relabelled"] = "relabelled"
    targets: Literal["random", "next", "every"]
    epsilon: PositiveFloat = 0.5
    step_size: PositiveFloat = 0.1
    steps: PositiveInt = 100

    def __call__(
        self, network: Network, images: ImageSet, *, hardware: Hardware, seed: int, batch_size: int = BATCH
    ) -> Constructed:
        """An image for each of `images` (`every`: as many as there are classes), the same whatever the batch size."""
        network, (began, targets) = hardware.place(folded(network)), self._targets(images, seed)
        attack = PGD(
            norm="l2",
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            random_start=False,
            targeted=True,
        )

        def one_batch(first: int) -> tuple[Tensor, ...]:
            rows = slice(first, first + batch_size)
            start, target = as_float(images.images[began[rows]].to(hardware.device)), targets[rows].to(hardware.device)
            with hardware.autocast(), torch.no_grad():
                stored = _stored(attack(network, start, target, generator=Generator()))
                before, logits = (network(x).float() for x in (start, as_float(stored)))
            losses = (F.cross_entropy(z, target, reduction="none") for z in (before, logits))
            return stored, l2(as_float(stored) - start), *losses, logits.argmax(1) == target

        stored, distance, before, after, reached = _columns(one_batch, len(targets), batch_size, hardware)
        made = ImageSet(stored, targets, images.classes, f"{images.name}, relabelled")
        return Constructed(made, began, distance, before, after, reached)

    def _targets(self, images: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the images to begin from, and their targets."""
        count, classes, everyone = len(images), len(images.classes), torch.arange(len(images))
        if self.targets == "next":
            return everyone, (images.labels + 1) % classes
        if self.targets == "every":
            return everyone.repeat_interleave(classes), torch.arange(classes).repeat(count)
        return everyone, (noise.uniform(_keys(count, seed), (1,)).squeeze(1) * classes).long()


Construction = Annotated[Robustified | Relabelled, Field(discriminator="kind")]


@settings
class Recipe:
    """One constructed dataset: of which images, by which network (a family's member), how."""

    dataset: str
    family: str
    member: str
    make: Construction
    splits: Annotated[tuple[Literal["train", "test"], ...], Field(min_length=1)] = ("train",)

    def problem(self, families: Mapping[str, Any]) -> str:
        """What it refers to that is not there; empty if nothing."""
        if self.family not in families:
            return f"family: no family '{self.family}'{nearest(self.family, families)}"
        members = families[self.family].trainings
        return "" if self.member in members else f"member: no member '{self.member}'{nearest(self.member, members)}"


def save(id: str, recipe: Recipe, made: dict[str, Constructed], *, seed: int) -> None:
    """Write data/constructed/<id>/<split>/: the made splits, and the others as they are in the dataset it was made of.

    The card tells the recipe, the checksums of network and images, the share that reached its target, and mean distances.
    """
    source = store.load(store.folder("models", f"{recipe.family}/{recipe.member}")).card["sha256"]
    card = {"recipe": describe(recipe), "seed": seed, "source_sha256": source}
    with atomic(DATA / "constructed" / id) as partial:
        for split in ("train", "validation", "test"):
            base = store.load(datasets.folder(recipe.dataset) / split)
            own = {"base_sha256": base.card["sha256"], "classes": base.card["classes"]}
            if split not in made:
                store.save(partial / split, base.tensors, card | own)
                continue
            part = made[split]
            means = {name: getattr(part, name).mean().item() for name in ("l2", "before", "after")}
            own |= {"size": len(part.images), "reached": part.reached.float().mean().item(), "mean": means}
            tensors = {"images": part.images.images, "labels": part.images.labels}
            tensors |= {name: getattr(part, name) for name in ("began", "l2", "before", "after", "reached")}
            store.save(partial / split, tensors, card | own)


def load(id: str, split: str) -> Constructed:
    """A made split of data/constructed/<id>/."""
    tensors = store.load(DATA / "constructed" / id / split).tensors
    rest = {name: tensors[name] for name in ("began", "l2", "before", "after", "reached")}
    return Constructed(datasets.load(id, split), **rest)


def others(count: int, seed: int) -> Tensor:
    """(count,) int64: for each image the index of another one, uniform among all but itself."""
    if count < 2:
        raise ValueError(f"robustification begins from another image: it needs two, found {count}")
    drawn = (noise.uniform(_keys(count, seed), (1,)).squeeze(1) * (count - 1)).long()
    return drawn + (drawn >= torch.arange(count))


def _keys(count: int, seed: int) -> Tensor:
    return noise.image_keys(count, Generator().manual_seed(seed))


def _stored(images: Tensor) -> Tensor:
    """uint8, rounded: what a dataset keeps."""
    return (255 * images).round().byte()


def _columns(
    function: Callable[[int], tuple[Tensor, ...]], count: int, batch_size: int, hardware: Hardware
) -> list[Tensor]:
    parts = side_by_side(function, list(range(0, count, batch_size)), hardware)
    return [torch.cat([t.cpu() for t in column]) for column in zip(*parts, strict=True)]
