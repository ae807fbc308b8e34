"""Datasets that a network makes of a dataset: robustified images, and images labelled with the class they were moved to.

A new one: its class with `plan`, `outputs`, `goal`, `check`, `distance`, `move`, `reached`, and its place in `Construction`.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features import datasets, inputs, lbfgs, noise, store, training
from robust_features.attacks import Ball, ascend, l2
from robust_features.batches import as_float
from robust_features.datasets import ImageSet
from robust_features.evaluation import BATCH
from robust_features.files import atomic
from robust_features.hardware import Hardware, Precision, side_by_side
from robust_features.models import COMPARED, Network, folded
from robust_features.paths import DATA
from robust_features.settings import Count, Positive, describe, nearest, settings

Outputs = Callable[[Tensor], Tensor]  # of images
Distance = Callable[..., Tensor]  # (n,) of outputs, and of the rows of the batch that they are of
EVERY = "every"
MEASURES = ("began", "l2", "before", "after", "reached")


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

    D_R and D_NR (Ilyas et al. 2019, Sec. 3.1) and R_ε (Springer et al. 2021, Sec. 3.3) differ in whose representation it is.
    `step_size: lbfgs` is not the papers': it has none, remembers curvature, and needs a fifth of the steps.
    """

    kind: Literal["robustified"] = "robustified"
    steps: Count = 400
    step_size: Positive | Literal["lbfgs"] = 0.05

    def move(self, outputs: Outputs, distance: Distance, start: Tensor) -> Tensor:
        """Images in [0, 1] whose outputs are near the goal."""
        if self.step_size == "lbfgs":
            return lbfgs.approach(outputs, distance, start, steps=self.steps)
        return _descend(outputs, distance, start, Ball("l2", inf), self.step_size, self.steps)

    def plan(self, images: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the images to begin from, and the labels."""
        return others(len(images), seed), images.labels

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """(n, d) representations."""
        return network.features(images, network.representation).float().flatten(1)

    def goal(self, network: Network, images: Tensor, labels: Tensor, rows: slice) -> Tensor:
        """What the outputs of these rows are to become: of uint8 images and labels on the device."""
        return self.outputs(network, inputs.numbers(network, as_float(images[rows]), "images"))

    def check(self, outputs: Tensor, goal: Tensor) -> None:
        """Raises ValueError for representations that are not finite."""
        inputs.finite(outputs)

    def distance(self, outputs: Tensor, goal: Tensor) -> Tensor:
        return (outputs - goal).norm(dim=1)

    def reached(self, outputs: Tensor, goal: Tensor, before: Tensor) -> Tensor:
        return self.distance(outputs, goal) <= before / 10


@settings
class Relabelled:
    """Targeted adversarial images, labelled with their targets (Ilyas et al. 2019, Sec. 3.2; Springer et al. 2021, Sec. 3.2).

    `random`: one uniform class each, D_rand. `next`: the class after the true one, D_det and D_neg. `every`: all classes in
    turn, the true one among them, D_zero of Springer et al.
    """

    kind: Literal["relabelled"] = "relabelled"
    targets: Literal["random", "next", "every"]
    epsilon: Positive = 0.5
    step_size: Positive = 0.1
    steps: Count = 100

    def move(self, outputs: Outputs, distance: Distance, start: Tensor) -> Tensor:
        """Images in [0, 1], within epsilon of `start`, whose outputs are near the goal: PGD."""
        return _descend(outputs, distance, start, Ball("l2", self.epsilon), self.step_size, self.steps)

    def plan(self, images: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the images to begin from, and their targets; of `every`, as many an image as there are classes."""
        count, classes, everyone = len(images), len(images.classes), torch.arange(len(images))
        if self.targets == "next":
            return everyone, (images.labels + 1) % classes
        if self.targets == "every":
            return everyone.repeat_interleave(classes), torch.arange(classes).repeat(count)
        return everyone, (noise.uniform(_keys(count, seed), (1,)).squeeze(1) * classes).long()

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """(n, classes) logits."""
        return network(images).float()

    def goal(self, network: Network, images: Tensor, labels: Tensor, rows: slice) -> Tensor:
        return labels[rows]

    def check(self, outputs: Tensor, goal: Tensor) -> None:
        """Raises ValueError for logits that are not finite, or fewer than there are targets."""
        inputs.logits(outputs, goal)

    def distance(self, outputs: Tensor, goal: Tensor) -> Tensor:
        return F.cross_entropy(outputs, goal, reduction="none")

    def reached(self, outputs: Tensor, goal: Tensor, before: Tensor) -> Tensor:
        return outputs.argmax(1) == goal


Construction = Annotated[Robustified | Relabelled, Field(discriminator="kind")]


@settings
class Recipe:
    """How a dataset is constructed, and by which member of a family; by member `every` it is one a member."""

    member: str
    make: Construction
    splits: Annotated[tuple[Literal["train", "validation", "test"], ...], Field(min_length=1)] = ("train", "validation")
    batch_size: Count = BATCH


@settings
class Constructions:
    """Datasets that a family's networks make of one dataset, by name."""

    dataset: str
    family: str
    sets: dict[str, Recipe]

    def problem(self, families: Mapping[str, Any]) -> str:
        """What it refers to that is not there; empty if nothing."""
        if self.family not in families:
            return f"family: no family '{self.family}'{nearest(self.family, families)}"
        known = {EVERY, *families[self.family].trainings}
        wrong = {name: recipe.member for name, recipe in self.sets.items() if recipe.member not in known}
        lines = (f"sets.{name}.member: no member '{member}'{nearest(member, known)}" for name, member in wrong.items())
        return next(lines, "")

    def ids(self, id: str, families: Mapping[str, Any]) -> dict[str, tuple[Recipe, str]]:
        """The datasets' ids, `<id>/<name>` or for every member `<id>/<name>/<member>`; of each the recipe and who makes it."""
        found = {}
        for name, recipe in self.sets.items():
            if recipe.member == EVERY:
                found |= {f"{id}/{name}/{member}": (recipe, member) for member in families[self.family].members}
            else:
                found[f"{id}/{name}"] = recipe, recipe.member
        return found


def make(
    id: str,
    entry: Constructions,
    families: Mapping[str, Any],
    *,
    hardware: Hardware,
    seed: int,
    report: Callable[[str], None] = print,
) -> None:
    """Make the splits of every dataset of an entry and write data/constructed/<its id>/<split>/.

    If the training images are made, the splits that are not are those of the dataset they were made of. An interrupted run
    goes on with the batches that are not finished.
    """
    places = []
    for name, (recipe, member) in entry.ids(id, families).items():
        network, _ = training.load(f"{entry.family}/{member}", hardware=hardware)
        images = {split: datasets.load(entry.dataset, split) for split in recipe.splits}
        depends = [*(part.images for part in images.values()), *network.state_dict().values()]
        places.append(store.interrupted("construction", [describe(recipe), seed], depends))
        options = dict(hardware=hardware, seed=seed, batch_size=recipe.batch_size, report=report)
        made = {
            split: construct(recipe.make, network, part, resume=places[-1] / split, **options)
            for split, part in images.items()
        }
        save(name, entry, recipe, member, made, seed=seed, precision=hardware.precision_of(network))
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


@inputs.gradients()
def construct(
    how: Construction,
    network: Network,
    images: ImageSet,
    *,
    hardware: Hardware,
    seed: int,
    batch_size: int = BATCH,
    resume: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> Constructed:
    """Images and labels as `how` says, the same whatever the batch size. With `resume`, finished batches are kept there.

    Raises ValueError for what `inputs` refuses, such as a network that gives NaN.
    """
    network = hardware.place(folded(network, as_float(images.images[:COMPARED])))
    began, labels = how.plan(images, seed)
    precision = hardware.precision_of(network)
    pool, wanted = images.images.to(hardware.device), labels.to(hardware.device)

    def one_batch(first: int) -> dict[str, Tensor]:
        place, rows = resume / str(first) if resume else None, slice(first, first + batch_size)
        if place and (kept := store.kept(place)):
            return kept
        start = inputs.numbers(network, as_float(pool[began[rows].to(hardware.device)]), "images")
        with torch.no_grad():
            goal = how.goal(network, pool, wanted, rows)
            outputs = how.outputs(network, start)
            how.check(outputs, goal)
            before = how.distance(outputs, goal)
            with hardware.autocast(precision):
                found = how.move(lambda x: how.outputs(network, x), lambda z, at=...: how.distance(z, goal[at]), start)
            inputs.finite(found, "the network's gradients give")
            stored = (255 * found).round().byte()  # what a dataset keeps
            outputs = how.outputs(network, as_float(stored).to(start))
            after, reached = how.distance(outputs, goal), how.reached(outputs, goal, before)
            inputs.finite(torch.stack([before, after], 1))
        moved = l2(as_float(stored) - start)
        part = dict(images=stored, l2=moved, before=before, after=after, reached=reached)
        if place:
            store.save(place, part, {})
        return part

    parts = side_by_side(one_batch, range(0, max(1, len(labels)), batch_size), hardware.device, report=report)
    columns = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    made = ImageSet(columns.pop("images"), labels, images.classes, f"{images.name}, {how.kind}")
    return Constructed(made, began, **columns)


def save(
    id: str,
    entry: Constructions,
    recipe: Recipe,
    member: str,
    made: dict[str, Constructed],
    *,
    seed: int,
    precision: Precision,
) -> None:
    """Write data/constructed/<id>/<split>/: what was made, and beside made training images the dataset's other splits.

    The card tells dataset, network and recipe, their checksums, the share that reached its target, and mean distances.
    """
    source = store.load(store.folder("models", f"{entry.family}/{member}")).card["sha256"]
    card = {"dataset": entry.dataset, "network": f"{entry.family}/{member}", "recipe": describe(recipe)}
    card |= {"seed": seed, "precision": precision, "source_sha256": source}
    with atomic(DATA / "constructed" / id) as partial:
        for split in ("train", "validation", "test") if "train" in made else made:
            base = store.load(datasets.folder(entry.dataset) / split)
            own = {"base_sha256": base.card["sha256"], "classes": base.card["classes"]}
            if split not in made:
                store.save(partial / split, base.tensors, card | own)
                continue
            if split == "validation":  # what training with `keep: best-true` watches
                store.save(partial / "validation-true", base.tensors, card | own)
            part = made[split]
            means = {name: getattr(part, name).mean().item() for name in ("l2", "before", "after")}
            own |= {"size": len(part.images), "reached": part.reached.float().mean().item(), "mean": means}
            tensors = {"images": part.images.images, "labels": part.images.labels}
            store.save(partial / split, tensors | {name: getattr(part, name) for name in MEASURES}, card | own)


def load(id: str, split: str) -> Constructed:
    """A made split of data/constructed/<id>/."""
    tensors = store.load(DATA / "constructed" / id / split).tensors
    return Constructed(datasets.load(id, split), **{name: tensors[name] for name in MEASURES})


def distances(sets: Mapping[str, str], split: str) -> pd.DataFrame:
    """For made datasets, name → id, a row each: mean distance before and after, their ratio, L2 moved, percent reached, n."""
    rows = {}
    for name, id in sets.items():
        made = load(id, split)
        before, after, moved = (tensor.mean().item() for tensor in (made.before, made.after, made.l2))
        row = {"distance before": before, "distance after": after, "before / after": before / after, "L2 moved": moved}
        rows[name] = row | {"reached (%)": 100 * made.reached.float().mean().item(), "n": len(made.l2)}
    return pd.DataFrame.from_dict(rows, orient="index")


def others(count: int, seed: int) -> Tensor:
    """(count,) int64: for each image the index of another one, uniform among all but itself."""
    if count < 2:
        raise ValueError(f"robustification begins from another image: it needs two, found {count}")
    drawn = (noise.uniform(_keys(count, seed), (1,)).squeeze(1) * (count - 1)).long()
    return drawn + (drawn >= torch.arange(count))


def _descend(outputs: Outputs, distance: Distance, start: Tensor, ball: Ball, step_size: float, steps: int) -> Tensor:
    return ascend(outputs, lambda z, at: -distance(z, at), start, ball=ball, step_size=step_size, steps=steps)


def _keys(count: int, seed: int) -> Tensor:
    return noise.image_keys(count, Generator().manual_seed(seed))
