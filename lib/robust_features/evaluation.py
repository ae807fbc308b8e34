"""Running a network, and an attack on it, over a whole set of images; memory is bounded by the batch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Generator, Tensor

from robust_features import store
from robust_features.attacks import Attack, l2, linf
from robust_features.batches import as_float
from robust_features.datasets import ImageSet
from robust_features.hardware import Hardware
from robust_features.models import Network, frozen
from robust_features.paths import DATA
from robust_features.settings import describe
from robust_features.statistics import Interval, wilson

BATCH = 250


@dataclass(frozen=True)
class Attacked:
    """One attack on every image: predictions and perturbation norms, each (N,) on the CPU, and the images where they were kept."""

    predictions: Tensor
    l2: Tensor
    linf: Tensor
    images: Tensor | None = None


def attack_all(
    attack: Attack,
    network: Network,
    images: ImageSet,
    *,
    hardware: Hardware,
    seed: int,
    batch_size: int = BATCH,
    keep_images: bool = False,
) -> Attacked:
    """Attack every image in eval mode with frozen parameters; image i sees the same noise whatever the batch size."""
    generator, parts = Generator().manual_seed(seed), []
    with frozen(network), hardware.autocast():
        for batch, labels in zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True):
            clean, labels = as_float(batch.to(hardware.device)), labels.to(hardware.device)
            adversarial = attack(network, clean, labels, generator=generator)
            with torch.no_grad():
                predictions = network(adversarial).argmax(1)
            delta = adversarial - clean
            kept = [adversarial.contiguous()] if keep_images else []
            parts.append([t.cpu() for t in (predictions, l2(delta), linf(delta), *kept)])
    return Attacked(*(torch.cat(column) for column in zip(*parts, strict=True)))


def save(model_id: str, attacked: dict[str, Attacked], attacks: dict[str, Attack]) -> None:
    """Write data/evaluations/<id>/: the tensors of every attack, by name, and its settings on the card."""
    tensors = {
        f"{name}/{field}": tensor
        for name, result in attacked.items()
        for field, tensor in vars(result).items()
        if tensor is not None
    }
    store.save(
        DATA / "evaluations" / model_id, tensors, {"attacks": {name: describe(a) for name, a in attacks.items()}}
    )


def load(model_id: str) -> dict[str, Attacked]:
    """The attacks of data/evaluations/<id>/ by name."""
    tensors = store.load(DATA / "evaluations" / model_id).tensors
    names = sorted({key.split("/")[0] for key in tensors})
    return {
        name: Attacked(**{key.split("/")[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")})
        for name in names
    }


def row(result: Attacked, labels: Tensor) -> dict[str, float]:
    """Accuracy with its interval (percent), and mean L2 and L∞ norm of the perturbations (pixels in [0, 1])."""
    accuracy = asdict(accuracy_of(result.predictions, labels))
    return accuracy | {"l2": result.l2.mean().item(), "linf": result.linf.mean().item()}


def accuracy_of(predictions: Tensor, labels: Tensor) -> Interval:
    """The share of predictions that equal the labels, in percent, with its 95 % interval."""
    return wilson(int((predictions == labels).sum()), len(labels))


def predict(network: Network, images: Tensor, *, hardware: Hardware, batch_size: int = BATCH) -> Tensor:
    """(N, K) float32 logits on the CPU of (N, C, H, W) images in [0, 1]."""
    return _outputs(network, network, images, hardware, batch_size)


def features(
    network: Network, images: Tensor, *, hardware: Hardware, at: str | None = None, batch_size: int = BATCH
) -> Tensor:
    """(N, C, h, w) float32 on the CPU: f_l of every image, by default at the network's split."""
    return _outputs(lambda batch: network.features(batch, at), network, images, hardware, batch_size)


def decide(
    network: Network, features: Tensor, *, hardware: Hardware, at: str | None = None, batch_size: int = BATCH
) -> Tensor:
    """(N,) class that f_l+ predicts from features, on the CPU."""
    return _outputs(lambda batch: network.head(batch, at), network, features, hardware, batch_size).argmax(1)


def _outputs(
    function: Callable[[Tensor], Tensor], network: Network, inputs: Tensor, hardware: Hardware, batch_size: int
) -> Tensor:
    with frozen(network), torch.no_grad(), hardware.autocast():
        return torch.cat([function(batch.to(hardware.device)).float().cpu() for batch in inputs.split(batch_size)])
