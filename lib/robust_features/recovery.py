"""What networks learn from a planted world (`planted`), from datasets made from it, and from their null controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, nn

from robust_features import noise
from robust_features.attacks import PGD, Ball, l2
from robust_features.attacks.ball import per_image
from robust_features.batches import ImageSet, as_float
from robust_features.construction import Relabelled, Robustified, construct
from robust_features.dependence import HSIC
from robust_features.hardware import Hardware
from robust_features.networks import Network, Normalize
from robust_features.planted import BODY, CLASSES, SIZE, Patterns, World, patterns
from robust_features.regularisers import IBRAR
from robust_features.settings import Count, Positive, settings
from robust_features.training.objectives import Adversarial, Objective, Standard

INVERTED = Robustified(method="lbfgs", steps=16)


@settings
class Study:
    """Sizes and durations: sources learn from images of their own, and datasets are made from others they never saw."""

    world: World = World()
    epsilon: Positive = 0.3  # L2: of robust training, of constructions, of the attack
    sources: Count = 12_000  # images that each source learns from; so many that it has no noise to remember
    images: Count = 1_500  # from which datasets are made
    tests: Count = 800

    @property
    def attack(self) -> PGD:
        """The attack that networks are tested with."""
        return PGD(epsilon=self.epsilon, step_size=self.epsilon / 4, steps=20, norm="l2", random_start=False)

    @property
    def robust(self) -> Adversarial:
        """The objective that the robust source is trained with."""
        inner = PGD(epsilon=self.epsilon, step_size=self.epsilon / 2, steps=3, norm="l2", random_start=False)
        return Adversarial(attack=inner)

    def relabelled(self, targets: Literal["random", "next"]) -> Relabelled:
        return Relabelled(targets=targets, epsilon=self.epsilon, step_size=self.epsilon / 5, steps=20)


@dataclass(frozen=True)
class Recovery:
    """The networks by what they learned from, and the images that they are to be tested on, by what is in them."""

    patterns: Patterns
    networks: dict[str, Network]
    tests: dict[str, ImageSet]


TAUGHT = ("d-r", "d-nr", "d-rand", "d-det", "shuffled", "noise-rand", "noise-det")


def recover(study: Study, parts: str, *, seed: int, hardware: Hardware, taught: tuple[str, ...] = TAUGHT) -> Recovery:
    """A world of these parts, its `standard` and `robust` source, and a network taught by each dataset made with them.

    d-r and d-nr are robustified by either source; d-rand and d-det, which Springer et al. call D_zero (with one target
    an image) and D_neg, are relabelled by the standard one. Null controls: `shuffled` is d-rand with its labels in
    another order, noise-rand and noise-det have random perturbations of the same sizes instead of d-rand's and d-det's.
    Tests: images of all parts and of each alone; `R`, made of test images as d-r is of others; and R with its texture,
    or with all but its texture, as it was in the images that it started from.
    """
    known, draw, options = patterns(seed), study.world.draw, dict(hardware=hardware, seed=seed)
    networks = {}
    for number, (name, objective) in enumerate({"standard": Standard(), "robust": study.robust}.items(), 1):
        images = draw(known, study.sources, parts=parts, seed=10 * seed + number)
        networks[name] = fit(images, objective, seed=10 * seed + number, epochs=5)
    train = draw(known, study.images, parts=parts, seed=10 * seed + 3)
    relabelled = {"d-rand": study.relabelled("random"), "d-det": study.relabelled("next")}
    sets = {name: construct(how, networks["standard"], train, **options).images for name, how in relabelled.items()}
    order = torch.randperm(len(train), generator=Generator().manual_seed(seed))
    sets["shuffled"] = replace(sets["d-rand"], labels=sets["d-rand"].labels[order])
    for name in ("rand", "det"):
        sets[f"noise-{name}"] = replace(sets[f"d-{name}"], images=nudged(train, sets[f"d-{name}"], seed))
    for name, source in {"d-r": "robust", "d-nr": "standard"}.items():
        if name in taught:
            sets[name] = construct(INVERTED, networks[source], train, **options).images
    for number, name in enumerate(taught):
        networks[name] = fit(sets[name], Standard(), seed=10 * seed + 4 + number, epochs=20)
    tests = {part: draw(known, study.tests, parts=part, seed=10 * seed + 9) for part in dict.fromkeys([parts, *parts])}
    found = construct(INVERTED, networks["robust"], tests[parts], **options)
    began, body = tests[parts].images[found.began], torch.arange(SIZE)[:, None] < BODY
    tests["R"] = found.images
    tests["R body"] = replace(found.images, images=torch.where(body, found.images.images, began))
    tests["R texture"] = replace(found.images, images=torch.where(body, began, found.images.images))
    return Recovery(known, networks, tests)


def network(seed: int) -> Network:
    """The untrained network: one hidden layer of 32 ReLUs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 32), nn.ReLU())
        stages = {"normalize": Normalize(0.5, 0.25), "hidden": hidden, "logits": nn.Linear(32, CLASSES)}
    return Network(stages, split="hidden", hidden=("hidden",))


def course(
    images: ImageSet,
    tests: ImageSet,
    regulariser: IBRAR | None,
    *,
    seed: int,
    epochs: int,
    estimates: Mapping[str, HSIC],
    batch: int = 100,
) -> list[dict[str, str | int | float]]:
    """How much the hidden layer depends on images and labels before training and after every epoch, by each estimate.

    One row per epoch, estimate and side: HSIC of the first `batch` test images, divided by the root of the product of
    the two kernels' own, so that 1 is the maximum and the size of the layer's outputs does not matter.
    """
    x, y, rows = as_float(tests.images[:batch]), tests.labels[:batch], []

    def watch(epoch: int, learner: Network) -> None:
        with torch.no_grad():
            hidden = learner.activations(x)["hidden"]
        for name, estimate in estimates.items():
            layer = estimate.of_features(hidden)
            for side, other in {"images": estimate.of_features(x), "labels": estimate.of_labels(y, CLASSES)}.items():
                scaled = estimate(layer, other) / (estimate(layer, layer) * estimate(other, other)).sqrt()
                rows.append({"epoch": epoch, "estimate": name, "on the": side, "value": scaled.item()})

    fit(images, Standard(), seed=seed, epochs=epochs, regulariser=regulariser, watch=watch)
    return rows


def fit(
    images: ImageSet,
    objective: Objective,
    *,
    seed: int,
    epochs: int,
    regulariser: IBRAR | None = None,
    watch: Callable[[int, Network], None] = lambda epoch, learner: None,
) -> Network:
    """A network trained by Adam in batches of 100, in eval mode; `watch` runs before training and after each epoch."""
    learner, draws = network(seed), Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(learner.parameters(), 3e-3)
    x, y = as_float(images.images), images.labels
    watch(0, learner)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(y), generator=draws).split(100):
            outcome = objective(learner, x[rows], y[rows], generator=draws)
            loss = outcome.loss
            if regulariser:
                loss = loss + regulariser(learner, outcome.passes, x[rows], y[rows], given=outcome.images)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        watch(epoch, learner)
    return learner.eval()


def nudged(images: ImageSet, moved: ImageSet, seed: int) -> torch.Tensor:
    """uint8 images that lie as far from `images`, in L2, as `moved` do, each in a random direction."""
    start = as_float(images.images)
    keys = noise.image_keys(len(start), Generator().manual_seed(seed))
    direction = Ball("l2", 1.0).steepest(noise.normal(keys, start.shape[1:]))
    found = start + direction * per_image(l2(as_float(moved.images) - start))
    return (255 * found.clamp(0, 1)).round().byte()
