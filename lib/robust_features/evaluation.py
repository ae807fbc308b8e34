"""Running a network, and an attack on it, over a whole set of images; memory is bounded by the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from robust_features import inputs, noise
from robust_features.attacks import NIFGSM, PGD, Adaptive, Attack, l2, linf
from robust_features.batches import ImageSet, as_float
from robust_features.hardware import BATCH, Hardware, Precision, side_by_side
from robust_features.networks import COMPARED, Network, folded, frozen
from robust_features.statistics import Interval, wilson


@dataclass(frozen=True)
class Attacked:
    """One attack on every image: predictions and perturbation norms, each (N,) on the CPU; images, only the first."""

    predictions: Tensor
    l2: Tensor
    linf: Tensor
    images: Tensor | None = None


@inputs.gradients()
def attack_all(
    attack: Attack,
    network: Network,
    images: ImageSet,
    *,
    hardware: Hardware,
    seed: int,
    batch_size: int | None = None,
    images_kept: int = 0,
    report: Callable[[str], None] | None = None,
) -> Attacked:
    """Attack every image in eval mode, batch norms folded; image i sees the same noise whatever the batch size.

    Memory is bounded by the batch (on a CPU: by one per thread), and by the first `images_kept` adversarial images,
    which are kept. Predictions and norms are float32, whatever the attack was crafted in. Raises ValueError for what
    `inputs` refuses, such as a network that gives NaN; for an empty set the result is empty.
    """
    network = hardware.place(folded(network, as_float(images.images[:COMPARED])))
    precision = crafted_in(attack, network, hardware)
    keys = noise.image_keys(len(images), Generator().manual_seed(seed))
    if batch_size is None:  # an objective of the whole batch is not to depend on the machine
        batch_size = BATCH if isinstance(attack, Adaptive) else hardware.batch

    def one_batch(start: int) -> list[Tensor]:
        part = slice(start, start + batch_size)
        clean, labels = as_float(images.images[part].to(hardware.device)), images.labels[part].to(hardware.device)
        with hardware.autocast(precision):
            adversarial = attack(network, clean, labels, generator=keys[part])
        with torch.no_grad():
            predictions = inputs.finite(network(inputs.numbers(network, adversarial, "images"))).argmax(1)
        delta, room = adversarial - clean, max(0, images_kept - start)
        return [t.cpu() for t in (predictions, l2(delta), linf(delta), adversarial[:room].contiguous())]

    starts = range(0, max(1, len(images)), batch_size)  # for an empty set, one empty batch
    columns = zip(*side_by_side(one_batch, starts, hardware.device, report=report), strict=True)
    predictions, two, infinite, kept = (torch.cat(column) for column in columns)
    return Attacked(predictions, two, infinite, kept if images_kept else None)


def crafted_in(attack: Attack, network: Network, hardware: Hardware) -> Precision:
    """The precision in which an attack runs the network: fp32 if it decides by the outputs which image it returns.

    An image that stops, fooled in bfloat16, may not really be fooled: the attack would look weaker than it is.
    """
    match attack:
        case PGD(until="end", restarts=1) | NIFGSM():
            return hardware.precision_of(network)
    return "fp32"


def accuracy_of(predictions: Tensor, labels: Tensor) -> Interval:
    """The share of predictions that equal the labels, in percent, with its 95 % interval."""
    return wilson(int((predictions == labels).sum()), len(labels))


def predict(network: Network, images: Tensor, *, hardware: Hardware) -> Tensor:
    """(N, K) float32 logits on the CPU of (N, C, H, W) images in [0, 1]. Raises ValueError as `inputs` does."""
    return _outputs(network, inputs.pixels, network, images, hardware)


def features(network: Network, images: Tensor, *, hardware: Hardware, at: str | None = None) -> Tensor:
    """(N, C, h, w) float32 on the CPU: f_l of every image, by default at the network's split."""
    return _outputs(partial(network.features, at=at), inputs.pixels, network, images, hardware)


def decide(network: Network, features: Tensor, *, hardware: Hardware, at: str | None = None) -> Tensor:
    """(N,) class that f_l+ predicts from features, on the CPU."""
    return _outputs(partial(network.head, at=at), inputs.numbers, network, features, hardware).argmax(1)


def _outputs(
    function: Callable[[Tensor], Tensor],
    checked: Callable[[Network, Tensor], Tensor],
    network: Network,
    given: Tensor,
    hardware: Hardware,
) -> Tensor:
    network.to(hardware.device)
    with frozen(network), torch.no_grad():
        batches = (checked(network, batch.to(hardware.device)) for batch in given.split(hardware.batch))
        return inputs.finite(torch.cat([function(batch).float().cpu() for batch in batches]))
