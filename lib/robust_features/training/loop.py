"""Training: one settings object in, one network and its history out; interrupted runs resume to the same bits."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn, optim

from robust_features import networks, noise
from robust_features.attacks import PGD
from robust_features.batches import Augmentation, ImageSet, as_float, shuffled
from robust_features.evaluation import attack_all, predict
from robust_features.files import atomic
from robust_features.hardware import Hardware, Precision, sent
from robust_features.networks import Network, NetworkSettings
from robust_features.regularisers import Mask, Regulariser
from robust_features.settings import Count, NonNegative, Pair, Positive, Seed, Share, UserError, settings
from robust_features.training.objectives import Objective, Standard
from robust_features.training.processes import ALONE, Processes

Gradients = Callable[..., Tensor]  # of images, labels and keys → the loss
HISTORY = ["epoch", "loss", "clean", "attacked"]


@settings
class SGD:
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: Positive
    momentum: Annotated[Share, Field(lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0

    @model_validator(mode="after")
    def _looks_ahead(self) -> "SGD":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum, such as 0.9")
        return self

    def build(self, network: nn.Module) -> optim.Optimizer:
        return optim.SGD(
            network.parameters(),
            self.learning_rate,
            self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@settings
class Adam:
    """Adam (Kingma and Ba 2015)."""

    kind: Literal["adam"] = "adam"
    learning_rate: Positive
    weight_decay: NonNegative = 0.0

    def build(self, network: nn.Module) -> optim.Optimizer:
        return optim.Adam(network.parameters(), self.learning_rate, weight_decay=self.weight_decay)


@settings
class StepLR:
    """The learning rate times `gamma` every `every` epochs."""

    kind: Literal["step"] = "step"
    every: Count = 20
    gamma: Annotated[Share, Field(gt=0)] = 0.2

    def build(self, optimiser: optim.Optimizer, epochs: int, batches: int) -> optim.lr_scheduler.LRScheduler:
        return optim.lr_scheduler.StepLR(optimiser, self.every * batches, self.gamma)


@settings
class OneCycle:
    """The learning rate rises to the optimiser's over the run's first `warmup` share, then falls to 0 (Smith 2018)."""

    kind: Literal["one-cycle"] = "one-cycle"
    warmup: Annotated[Share, Field(gt=0, lt=1)] = 0.3

    def build(self, optimiser: optim.Optimizer, epochs: int, batches: int) -> optim.lr_scheduler.LRScheduler:
        peak = optimiser.param_groups[0]["lr"]
        return optim.lr_scheduler.OneCycleLR(
            optimiser, peak, epochs * batches, pct_start=self.warmup, cycle_momentum=False, anneal_strategy="linear"
        )


@settings
class Training:
    """One model: everything its weights depend on, besides the library and the machine."""

    dataset: str
    network: NetworkSettings
    objective: Objective
    optimiser: Annotated[SGD | Adam, Field(discriminator="kind")]
    schedule: Annotated[StepLR | OneCycle, Field(discriminator="kind")] = StepLR()
    epochs: Count
    batch_size: Pair = 100
    augmentation: Augmentation = Augmentation()
    regulariser: Regulariser | None = None
    mask: Mask | None = None
    monitor: PGD | None = None  # the attack of the history, on the validation split; without it, clean accuracy only
    keep: Literal["last", "best", "best-true"] = "last"  # best: the epoch most accurate on the validation images
    seed: Seed = 0

    @property
    def defence(self) -> str:
        """What tables call the objective: standard, adversarial, trades or mart."""
        return self.objective.kind.partition("-")[0]

    @property
    def radius(self) -> float:
        """The epsilon it is trained against, ε of Springer et al. 2021; 0 for standard training."""
        return 0.0 if isinstance(self.objective, Standard) else self.objective.attack.epsilon

    def build(self, classes: int) -> Network:
        """The untrained network."""
        return networks.build(self.network, classes, seed=self.seed, masked=self.mask is not None)


@dataclass(frozen=True)
class Trained:
    """The last (or best) epoch's network, in eval mode, and one row per epoch: loss, validation accuracy (percent)."""

    network: Network
    history: list[dict[str, float]]
    precision: Precision = "fp32"  # in which it was trained
    processes: int = 1  # that shared the training


def train(
    splits: dict[str, ImageSet],
    settings: Training,
    *,
    hardware: Hardware,
    resume: Path | None = None,
    processes: Processes = ALONE,
    report: Callable[[str], None] = print,
) -> Trained:
    """Train on `splits["train"]`, watching `splits["validation"]`; one reported line per epoch.

    With `resume`, the state after each epoch is kept in that file and a run that finds it there goes on from it. Every
    random draw of an epoch depends on (seed, epoch) alone, so a resumed run ends as an uninterrupted one, on a CPU to
    the bit. Several `processes`, each of which calls this, share every batch; the result is that of one process except
    for rounding, their own random starts and statistics of batch normalisation. Raises UserError if the regulariser or
    the mask does not fit, if shares would have fewer than two images, and when the loss is no longer finite.
    """
    share = settings.batch_size // processes.count
    if share < 2:
        raise UserError(
            f"batch_size: {settings.batch_size} leaves {processes.count} processes less than two images each"
        )
    images, labels = (t.to(hardware.device) for t in (splits["train"].images, splits["train"].labels))
    parts = _begin(splits["train"], settings, hardware)
    if settings.regulariser and (problem := settings.regulariser.problem(parts["network"], share)):
        raise UserError(f"regulariser.{problem}")
    if settings.mask and (problem := settings.mask.problem(settings.batch_size)):
        raise UserError(f"mask.{problem}")
    precision = hardware.precision_of(parts["network"])
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    shared = processes.count
    if resume and resume.exists():
        try:
            state = torch.load(resume, map_location=hardware.device, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            history, best, shared = state["history"], state["best"], max(shared, state.get("processes", 1))
            report(f"resumed after epoch {len(history)} of {settings.epochs}")
        except Exception as error:  # whatever torch raises for a file that was cut off
            report(f"{resume}: damaged ({type(error).__name__}), so training starts anew")
            parts = _begin(splits["train"], settings, hardware)
    network, optimiser, schedule = parts["network"], parts["optimiser"], parts["schedule"]
    learn = _gradients(network, settings, optimiser, hardware)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        started = time.perf_counter()
        loss = _one_epoch(network, images, labels, settings, learn, optimiser, schedule, epoch, processes)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} after epoch {epoch}: training diverged; in params.yaml, lower this model's "
                f"optimiser.learning_rate (now {settings.optimiser.learning_rate:g})"
            )
        history.append(
            {"epoch": epoch, "loss": loss.item(), **_validate(network, splits["validation"], settings, hardware)}
        )
        if settings.keep != "last" and history[-1]["clean"] >= max(row["clean"] for row in history):
            best = copy.deepcopy(network.state_dict())
        if resume and not processes.rank:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"history": history, "best": best, "processes": shared}
            with atomic(resume) as partial:
                torch.save(state, partial)
        row, seconds = history[-1], time.perf_counter() - started
        attacked = f"  attacked {row['attacked']:.1f} %" if settings.monitor else ""
        report(
            f"epoch {epoch}/{settings.epochs}  loss {row['loss']:.3f}  validation {row['clean']:.1f} %{attacked}  "
            f"{seconds:.1f} s in {precision}, {seconds * (settings.epochs - epoch):.0f} s left"
        )
    if best:
        network.load_state_dict(best)
    return Trained(network.eval(), history, precision, shared)


def _begin(images: ImageSet, settings: Training, hardware: Hardware) -> dict[str, Any]:
    """The untrained network, its optimiser and its schedule: what a resumed run reads back."""
    network = hardware.place(settings.build(len(images.classes)))
    optimiser = settings.optimiser.build(network)
    schedule = settings.schedule.build(optimiser, settings.epochs, max(1, len(images) // settings.batch_size))
    return {"network": network, "optimiser": optimiser, "schedule": schedule}


def _gradients(network: Network, settings: Training, optimiser: optim.Optimizer, hardware: Hardware) -> Gradients:
    """What a batch's images and labels, and if attacked their keys, say: the loss, its gradients left at the weights.

    Recorded if the attack takes the same steps whatever it finds, and if nothing is inverted, which a CUDA graph cannot
    hold. Batches must all be of one size: gradients lie where those of the size captured last do.
    """
    precision = hardware.precision_of(network)

    def gradients(images: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        with hardware.autocast(precision):
            outcome = settings.objective(network, images, labels, generator=keys)
        loss = outcome.loss
        if settings.regulariser:
            loss = loss + settings.regulariser(network, outcome.passes, images, labels, given=outcome.images)
        optimiser.zero_grad()
        loss.backward()
        return loss.detach()

    attack = None if isinstance(settings.objective, Standard) else settings.objective.attack
    same_steps = attack is None or (attack.until == "end" and attack.restarts == 1)
    recordable = same_steps and not settings.regulariser
    return hardware.recorded(gradients, keeps=network.buffers()) if recordable else gradients


def _one_epoch(
    network: Network,
    images: Tensor,
    labels: Tensor,
    settings: Training,
    learn: Gradients,
    optimiser: optim.Optimizer,
    schedule: optim.lr_scheduler.LRScheduler,
    epoch: int,
    processes: Processes,
) -> Tensor:
    """Mean loss of the epoch, a tensor: nothing waits for the device until the end."""
    generator = Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    own = processes.own(generator)
    losses = []
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(own.initial_seed())  # dropout draws from the global generator
        if settings.mask:
            settings.mask.before_epoch(network, images, labels, epoch, generator.initial_seed())
        for index, (batch, targets) in enumerate(shuffled(images, labels, settings.batch_size, generator)):
            augmented = settings.augmentation(batch, generator)
            if settings.mask:
                settings.mask.before_batch(network, augmented, targets, index)
                processes.agree(network.mask.passing)
            mine, right = processes.share(augmented), processes.share(targets)
            given = (mine, right)
            if not isinstance(settings.objective, Standard):
                given += (sent(noise.image_keys(len(mine), own), mine.device),)
            losses.append(learn(*given).clone())
            processes.average((weight.grad for weight in network.parameters()), len(mine) / len(augmented))
            optimiser.step()
            schedule.step()
        if settings.mask:
            settings.mask.after_epoch(network)
    loss = torch.stack(losses).mean()
    statistics = (buffer for buffer in network.buffers() if buffer.is_floating_point())
    processes.average([loss, *statistics], 1 / processes.count)
    return loss


def _validate(network: Network, images: ImageSet, settings: Training, hardware: Hardware) -> dict[str, float]:
    """Percentage of validation images that are right, clean and under the monitor."""
    found = {"clean": predict(network, as_float(images.images), hardware=hardware).argmax(1)}
    if settings.monitor:
        options = dict(hardware=hardware, seed=settings.seed)
        found["attacked"] = attack_all(settings.monitor, network, images, **options).predictions
    return {name: 100 * (of == images.labels).float().mean().item() for name, of in found.items()}
