"""What networks learn of a planted world (`planted`): of it as it is, of datasets made of it, and of their null controls."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, nn

from robust_features import noise
from robust_features.attacks import PGD, Ball, l2
from robust_features.attacks.ball import per_image
from robust_features.batches import ImageSet, as_float
from robust_features.construction import Relabelled, Robustified, construct
from robust_features.hardware import Hardware
from robust_features.networks import Network, Normalize
from robust_features.planted import CLASSES, SIZE, Patterns, World, patterns
from robust_features.settings import Count, Positive, settings
from robust_features.training.objectives import Adversarial, Objective, Standard


@settings
class Study:
    """How large, and how long: sources learn from images of their own, and datasets are made of others, seen by none."""

    world: World = World()
    epsilon: Positive = 0.3  # L2: of robust training, of constructions, of the attack
    sources: Count = 12_000  # images that each source learns from; so many that it has no noise to remember
    images: Count = 2_000  # of which datasets are made
    tests: Count = 1_000

    @property
    def attack(self) -> PGD:
        return PGD(epsilon=self.epsilon, step_size=self.epsilon / 4, steps=20, norm="l2", random_start=False)


@dataclass(frozen=True)
class Recovery:
    """The networks by what they learned from, and the images that they are to be tested on, by what is in them."""

    patterns: Patterns
    networks: dict[str, Network]
    tests: dict[str, ImageSet]


def recover(
    study: Study, parts: str, *, seed: int, hardware: Hardware, report: Callable[[str], None] | None = None
) -> Recovery:
    """A world of these parts, its two sources, D_R, D_NR, D_rand and D_det made with them, and a network taught by each.

    D_rand is Springer et al.'s D_zero with one target, D_det their D_neg. Null controls: `shuffled` is D_rand with its
    labels in another order; `noise-rand` and `noise-det` have random perturbations of D_rand's and D_det's sizes in place
    of theirs. `R` among the tests is made as D_R is, of test images.
    """
    known, draw = patterns(seed), study.world.draw
    options = dict(hardware=hardware, seed=seed)
    robust = Adversarial(
        attack=PGD(epsilon=study.epsilon, step_size=study.epsilon / 2, steps=3, norm="l2", random_start=False)
    )
    learnt = {"standard": Standard(), "robust": robust}
    networks = {
        name: fit(draw(known, study.sources, parts=parts, seed=1000 * seed + n), objective, seed=2 * seed + n, epochs=5)
        for n, (name, objective) in enumerate(learnt.items(), 1)
    }
    train = draw(known, study.images, parts=parts, seed=1000 * seed + 3)
    tests = {
        part: draw(known, study.tests, parts=part, seed=1000 * seed + 4) for part in dict.fromkeys([parts, *parts])
    }
    inverted = Robustified(method="lbfgs", steps=30)
    moved = dict(epsilon=study.epsilon, step_size=study.epsilon / 5, steps=20)
    made = {
        "d-r": construct(inverted, networks["robust"], train, **options),
        "d-nr": construct(inverted, networks["standard"], train, **options),
        "d-rand": construct(Relabelled(targets="random", **moved), networks["standard"], train, **options),
        "d-det": construct(Relabelled(targets="next", **moved), networks["standard"], train, **options),
    }
    tests["R"] = construct(inverted, networks["robust"], tests[parts], **options).images
    sets = {name: found.images for name, found in made.items()}
    order = torch.randperm(len(train), generator=Generator().manual_seed(seed))
    sets["shuffled"] = replace(sets["d-rand"], labels=sets["d-rand"].labels[order])
    for name in ("rand", "det"):
        sets[f"noise-{name}"] = replace(sets[f"d-{name}"], images=nudged(train, made[f"d-{name}"].images, seed))
    for number, (name, images) in enumerate(sets.items()):
        networks[name] = fit(images, Standard(), seed=100 * seed + number, epochs=20)
        if report:
            report(f"{parts}, seed {seed}: {name}")
    return Recovery(known, networks, tests)


def network(seed: int) -> Network:
    """The untrained network: one hidden layer of 32 ReLUs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 32), nn.ReLU())
        stages = {"normalize": Normalize(0.5, 0.25), "hidden": hidden, "logits": nn.Linear(32, CLASSES)}
    return Network(stages, split="hidden", hidden=("hidden",))


def fit(images: ImageSet, objective: Objective, *, seed: int, epochs: int) -> Network:
    """A network trained with Adam, in batches of 100, in eval mode."""
    learner, draws = network(seed), Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(learner.parameters(), 3e-3)
    x, y = as_float(images.images), images.labels
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=draws).split(100):
            loss = objective(learner, x[rows], y[rows], generator=draws).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return learner.eval()


def nudged(images: ImageSet, moved: ImageSet, seed: int) -> torch.Tensor:
    """uint8 images that lie as far from `images`, in L2, as `moved` do, each in a random direction."""
    start = as_float(images.images)
    keys = noise.image_keys(len(start), Generator().manual_seed(seed))
    direction = Ball("l2", 1.0).steepest(noise.normal(keys, start.shape[1:]))
    found = start + direction * per_image(l2(as_float(moved.images) - start))
    return (255 * found.clamp(0, 1)).round().byte()
