"""Datasets that a network makes of a dataset: robustified images, and images labelled with the class they are moved to.

A new one: its class with `plan`, `labelled`, `outputs`, `goal`, `distance`, `move`, `reached`, `check`, and its place
in `Construction`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from robust_features import inputs, lbfgs, noise
from robust_features.attacks import Ball, ascend, l2
from robust_features.batches import ImageSet, as_float
from robust_features.hardware import Hardware, side_by_side
from robust_features.networks import COMPARED, Network, folded
from robust_features.settings import Count, Positive, settings

Outputs = Callable[[Tensor], Tensor]  # of images
Distance = Callable[..., Tensor]  # (n,) of outputs, and of the rows of the batch that they are of
Once = Callable[[int, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
MEASURES = ("began", "l2", "before", "after", "reached")


@dataclass(frozen=True)
class Constructed:
    """New images with their labels; of each, where it began and how far it came.

    All are on the CPU, as the uint8 images are stored.
    """

    images: ImageSet
    began: Tensor  # (N,) int64, index of the image it began from
    l2: Tensor  # (N,) L2 distance from there, pixels in [0, 1]
    before: Tensor  # (N,) distance of representations, or the target's cross-entropy in nats, at the beginning
    after: Tensor  # (N,) the same at the end
    reached: Tensor  # (N,) bool: after is a tenth of before or less, or the network predicts the target


@settings
class Robustified:
    """From a random other image x₀, min ‖rep(x_r) − rep(x)‖₂ by equal L2 steps in the pixel range; labelled as x.

    D_R and D_NR (Ilyas et al. 2019, Sec. 3.1) and R_ε (Springer et al. 2021, Sec. 3.3) differ in whose representation
    it is. `method: lbfgs` is not the papers': it remembers curvature, has no `step_size`, and needs a tenth of the
    steps or fewer.
    """

    kind: Literal["robustified"] = "robustified"
    method: Literal["gradient", "lbfgs"] = "gradient"
    steps: Count = 400
    step_size: Positive = 0.05

    def plan(self, images: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the images to begin from, and the labels."""
        return others(len(images), seed), images.labels

    def labelled(self, labels: Tensor, seed: int) -> Tensor:
        """The labels of what was made for these."""
        return labels

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """(n, d) representations."""
        return network.features(images, network.representation).float().flatten(1)

    def goal(self, network: Network, images: Tensor, labels: Tensor, rows: slice) -> Tensor:
        """What the outputs of these rows are to become: of uint8 images and labels on the device."""
        return self.outputs(network, inputs.numbers(network, as_float(images[rows]), "images"))

    def distance(self, outputs: Tensor, goal: Tensor) -> Tensor:
        return (outputs - goal).norm(dim=1)

    def move(self, outputs: Outputs, distance: Distance, start: Tensor, keys: Tensor) -> Tensor:
        """Images in [0, 1] whose outputs are near the goal; `keys` are the images' own, for what is random."""
        if self.method == "lbfgs":
            return lbfgs.approach(outputs, distance, start, steps=self.steps)
        return descend(outputs, distance, start, ball=Ball("l2", inf), step_size=self.step_size, steps=self.steps)

    def reached(self, outputs: Tensor, goal: Tensor, before: Tensor) -> Tensor:
        return self.distance(outputs, goal) <= before / 10

    def check(self, outputs: Tensor, goal: Tensor) -> None:
        """Raises ValueError for representations that are not finite."""
        inputs.finite(outputs)


@settings
class Relabelled:
    """Targeted adversarial images, labelled with targets (Ilyas et al. 2019, Sec. 3.2; Springer et al. 2021, Sec. 3.2).

    `random`: one uniform class each, D_rand. `next`: the class after the true one, D_det and D_neg. `every`: all
    classes in turn, the true one among them, D_zero of Springer et al.
    """

    kind: Literal["relabelled"] = "relabelled"
    targets: Literal["random", "next", "every"]
    epsilon: Positive = 0.5
    step_size: Positive = 0.1
    steps: Count = 100

    def plan(self, images: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the images to begin from, and their targets; of `every`, as many an image as there are classes."""
        count, classes, everyone = len(images), len(images.classes), torch.arange(len(images))
        if self.targets == "next":
            return everyone, (images.labels + 1) % classes
        if self.targets == "every":
            return everyone.repeat_interleave(classes), torch.arange(classes).repeat(count)
        return everyone, noise.below(classes, _keys(count, seed))

    def labelled(self, targets: Tensor, seed: int) -> Tensor:
        """The labels of what was made for these targets."""
        return targets

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """(n, classes) logits."""
        return network(images).float()

    def goal(self, network: Network, images: Tensor, labels: Tensor, rows: slice) -> Tensor:
        return labels[rows]

    def distance(self, outputs: Tensor, goal: Tensor) -> Tensor:
        return F.cross_entropy(outputs, goal, reduction="none")

    def move(self, outputs: Outputs, distance: Distance, start: Tensor, keys: Tensor) -> Tensor:
        """Images in [0, 1], within epsilon of `start`, whose outputs are near the goal: PGD."""
        ball = Ball("l2", self.epsilon)
        return descend(outputs, distance, start, ball=ball, step_size=self.step_size, steps=self.steps)

    def reached(self, outputs: Tensor, goal: Tensor, before: Tensor) -> Tensor:
        return outputs.argmax(1) == goal

    def check(self, outputs: Tensor, goal: Tensor) -> None:
        """Raises ValueError for logits that are not finite, or fewer than there are targets."""
        inputs.logits(outputs, goal)


@settings
class Null(Relabelled):
    """A null control of `Relabelled`, which must teach nothing: images that do not carry what their labels name (ours).

    `unmoved`: each is left as it is. `noise`: moved by epsilon in a random direction. `shuffled`: moved to its target,
    and given another's label.
    """

    kind: Literal["null"] = "null"
    control: Literal["unmoved", "noise", "shuffled"]

    def labelled(self, targets: Tensor, seed: int) -> Tensor:
        """The labels of what was made for these targets."""
        if self.control != "shuffled":
            return targets
        return targets[torch.randperm(len(targets), generator=Generator().manual_seed(seed))]

    def move(self, outputs: Outputs, distance: Distance, start: Tensor, keys: Tensor) -> Tensor:
        """Images in [0, 1], moved as `control` says."""
        if self.control == "shuffled":
            return super().move(outputs, distance, start, keys)
        if self.control == "unmoved":
            return start
        direction = Ball("l2", self.epsilon).steepest(noise.normal(noise.derived(keys, 0), start.shape[1:]))
        return (start + self.epsilon * direction).clamp(0, 1)


Construction = Annotated[Robustified | Relabelled | Null, Field(discriminator="kind")]


@inputs.gradients()
def construct(
    how: Construction,
    network: Network,
    images: ImageSet,
    *,
    hardware: Hardware,
    seed: int,
    batch_size: int | None = None,
    once: Once = lambda first, make: make(),
    report: Callable[[str], None] | None = None,
) -> Constructed:
    """Images and labels as `how` says, the same whatever the batch size.

    `once` may keep what was made of the batch at `first`. Raises ValueError for what `inputs` refuses, such as a
    network that gives NaN.
    """
    network = hardware.place(folded(network, as_float(images.images[:COMPARED])))
    began, labels = how.plan(images, seed)
    precision = hardware.precision_of(network)
    pool, wanted = images.images.to(hardware.device), labels.to(hardware.device)
    keys = _keys(len(labels), seed).to(hardware.device)
    batch_size = batch_size or hardware.batch

    def one_batch(first: int) -> dict[str, Tensor]:
        rows = slice(first, first + batch_size)
        start = inputs.numbers(network, as_float(pool[began[rows].to(hardware.device)]), "images")
        with torch.no_grad():
            goal = how.goal(network, pool, wanted, rows)
            outputs = how.outputs(network, start)
            how.check(outputs, goal)
            before = how.distance(outputs, goal)
            with hardware.autocast(precision):

                def near(z: Tensor, at: Tensor | slice = slice(None)) -> Tensor:  # of some rows: those still moving
                    return how.distance(z, goal[at])

                found = how.move(lambda x: how.outputs(network, x), near, start, keys[rows])
            inputs.finite(found, "the network's gradients give")
            stored = (255 * found).round().byte()  # what a dataset keeps
            outputs = how.outputs(network, as_float(stored).to(start))
            after, reached = how.distance(outputs, goal), how.reached(outputs, goal, before)
            inputs.finite(torch.stack([before, after], 1))
        moved = l2(as_float(stored) - start)
        return dict(images=stored, l2=moved, before=before, after=after, reached=reached)

    starts = range(0, max(1, len(labels)), batch_size)
    parts = side_by_side(lambda first: once(first, lambda: one_batch(first)), starts, hardware.device, report=report)
    columns = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    made = ImageSet(columns.pop("images"), how.labelled(labels, seed), images.classes, f"{images.name}, {how.kind}")
    return Constructed(made, began, **columns)


def others(count: int, seed: int) -> Tensor:
    """(count,) int64: for each image the index of another one, uniform among all but itself."""
    if count < 2:
        raise ValueError(f"robustification begins from another image: it needs two, found {count}")
    drawn = noise.below(count - 1, _keys(count, seed))
    return drawn + (drawn >= torch.arange(count))


def descend(outputs: Outputs, distance: Distance, start: Tensor, *, ball: Ball, step_size: float, steps: int) -> Tensor:
    """Images in the ball around `start` at a lower distance(outputs(images)), by projected steps of one length."""
    return ascend(outputs, lambda z, at: -distance(z, at), start, ball=ball, step_size=step_size, steps=steps)


def _keys(count: int, seed: int) -> Tensor:
    return noise.image_keys(count, Generator().manual_seed(seed))
