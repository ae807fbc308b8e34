"""Running a network, and an attack on it, over a whole set of images; memory is bounded by the batch."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Generator, Tensor

from robust_features import datasets, inputs, noise, store
from robust_features.attacks import NIFGSM, PGD, Attack, l2, linf
from robust_features.batches import as_float
from robust_features.datasets import ImageSet
from robust_features.hardware import Hardware, Precision, side_by_side
from robust_features.models import COMPARED, Network, folded, frozen
from robust_features.settings import UserError, describe, nearest
from robust_features.statistics import Interval, wilson

BATCH = 250
GALLERY = 16  # images kept of an attack whose images no section reads


@dataclass(frozen=True)
class Attacked:
    """One attack on every image: predictions and perturbation norms, each (N,) on the CPU; images, of the first that were kept."""

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
    batch_size: int = BATCH,
    keep: int = 0,
    report: Callable[[str], None] | None = None,
) -> Attacked:
    """Attack every image in eval mode, batch norms folded; image i sees the same noise whatever the batch size.

    Memory is bounded by the batch (on a CPU: by one a thread), and by the first `keep` adversarial images, which are kept.
    Predictions and norms are float32, whatever the attack was crafted in. Raises ValueError for what `inputs` refuses, such as
    a network that gives NaN; of an empty set the result is empty.
    """
    network = hardware.place(folded(network, as_float(images.images[:COMPARED])))
    precision = crafted_in(attack, network, hardware)
    keys = noise.image_keys(len(images), Generator().manual_seed(seed))

    def one_batch(start: int) -> list[Tensor]:
        part = slice(start, start + batch_size)
        clean, labels = as_float(images.images[part].to(hardware.device)), images.labels[part].to(hardware.device)
        with hardware.autocast(precision):
            adversarial = attack(network, clean, labels, generator=keys[part])
        with torch.no_grad():
            predictions = inputs.finite(network(inputs.numbers(network, adversarial, "images"))).argmax(1)
        delta, room = adversarial - clean, max(0, keep - start)
        return [t.cpu() for t in (predictions, l2(delta), linf(delta), adversarial[:room].contiguous())]

    starts = range(0, max(1, len(images)), batch_size)  # of an empty set, an empty batch
    columns = zip(*side_by_side(one_batch, starts, hardware.device, report=report), strict=True)
    predictions, two, infinite, kept = (torch.cat(column) for column in columns)
    return Attacked(predictions, two, infinite, kept if keep else None)


def crafted_in(attack: Attack, network: Network, hardware: Hardware) -> Precision:
    """What an attack runs the network in: fp32 if it decides by the outputs which image it returns.

    An image that rests because bfloat16 takes it for fooled may not be fooled: the attack would look weaker than it is.
    """
    match attack:
        case PGD(keep="last", restarts=1) | NIFGSM():
            return hardware.precision_of(network)
    return "fp32"


def attack_each(
    attacks: dict[str, Attack],
    network: Network,
    images: ImageSet,
    *,
    hardware: Hardware,
    seed: int,
    whole: Collection[str] = (),
    resume: Path | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Attacked]:
    """Every attack by name, and `clean`: no attack. All images of the attacks in `whole` are kept, of the others GALLERY.

    With `resume`, each finished attack is kept in that folder, and a run that finds it there goes on with the next one.
    """
    clean = predict(network, as_float(images.images), hardware=hardware).argmax(1)
    zero = torch.zeros(len(clean))
    found = {"clean": Attacked(clean, zero, zero)}
    for name, attack in attacks.items():
        started, place = time.perf_counter(), resume / name if resume else None
        if place and (before := store.kept(place)):
            found[name] = Attacked(**before)
        else:
            keep = len(images) if name in whole else GALLERY
            options = dict(
                hardware=hardware, seed=seed, keep=keep, report=lambda line, name=name: report(f"{name}: {line}")
            )
            found[name] = attack_all(attack, network, images, **options)
            if place:
                store.save(place, {k: t for k, t in vars(found[name]).items() if t is not None}, {})
        right = (found[name].predictions == images.labels).float().mean()
        seconds, precision = time.perf_counter() - started, crafted_in(attack, network, hardware)
        report(f"{name}: {right:.1%} of {len(images)} still right  ({seconds:.1f} s in {precision})")
    return found


def resume_folder(attacks: dict[str, Attack], network: Network, images: ImageSet, *, seed: int) -> Path:
    """Where the finished attacks of an interrupted evaluation are kept."""
    settings = [seed, {name: describe(attack) for name, attack in attacks.items()}]
    return store.interrupted("attacks", settings, [images.images, images.labels, *network.state_dict().values()])


def save(
    folder: Path,
    attacked: dict[str, Attacked],
    attacks: dict[str, Attack],
    *,
    precision: Mapping[str, Precision] | None = None,
) -> None:
    """Write the tensors of every attack, by name, and its settings to a folder, such as data/evaluations/<id>/.

    The card also says what each was crafted in, if told.
    """
    tensors = {
        f"{name}/{field}": tensor
        for name, result in attacked.items()
        for field, tensor in vars(result).items()
        if tensor is not None
    }
    card = {"attacks": {name: describe(a) for name, a in attacks.items()}, "precision": dict(precision or {})}
    store.save(folder, tensors, card)


def load(model_id: str) -> dict[str, Attacked]:
    """The attacks on a model, or on a family's member, by name."""
    tensors = store.load(folder := store.folder("evaluations", model_id)).tensors
    names = sorted({key.split("/")[0] for key in tensors})
    with store.of_this_version(folder):
        return {
            name: Attacked(**{key.split("/")[1]: part for key, part in tensors.items() if key.startswith(f"{name}/")})
            for name in names
        }


def row(result: Attacked, clean: Attacked, labels: Tensor) -> dict[str, float]:
    """Accuracy with its interval (percent), and mean L2 and L∞ norm (pixels in [0, 1]) over the images that the attack fooled."""
    fooled = (clean.predictions == labels) & (result.predictions != labels)
    accuracy = asdict(accuracy_of(result.predictions, labels))
    return accuracy | {"l2": result.l2[fooled].mean().item(), "linf": result.linf[fooled].mean().item()}


def measures(models: dict[str, dict[str, str]], names: Collection[str]) -> pd.DataFrame:
    """Rows of Tables 3 and 4: for the models, id → dimensions, and attacks by name: accuracy and mean norms as `measure`s."""
    rows = []
    for model, dimensions in models.items():
        found = load(model)
        labels = datasets.load(dimensions["dataset"], "test").labels
        for name in names:
            if name not in found:
                raise UserError(f"{model}: no attack '{name}'{nearest(name, found)}; there are {', '.join(found)}")
            measured = row(found[name], found["clean"], labels)
            l2, linf = measured.pop("l2"), 255 * measured.pop("linf")
            for measure, values in (("accuracy (%)", measured), ("L2", {"value": l2}), ("L∞ · 255", {"value": linf})):
                rows.append({**dimensions, "example": name, "measure": measure, **values})
    return pd.DataFrame(rows)


def across(networks: dict[str, Network], sets: dict[str, ImageSet], *, hardware: Hardware) -> pd.DataFrame:
    """Accuracy of every network on every set of images: classifier, test set, value, low, high, n in percent."""
    return pd.DataFrame(
        {"classifier": name, "test set": title, **asdict(accuracy_of(logits.argmax(1), images.labels))}
        for name, network in networks.items()
        for title, images in sets.items()
        for logits in [predict(network, as_float(images.images), hardware=hardware)]
    )


def along_norm(
    found: dict[str, Attacked], labels: Tensor, *, norm: Literal["l2", "linf"], radii: Tensor
) -> pd.DataFrame:
    """Accuracy if only perturbations up to each radius count, for every attack: example, radius, value, low, high, n."""
    right = found["clean"].predictions == labels
    rows = []
    for name, result in found.items():
        size = torch.where(result.predictions != labels, getattr(result, norm), torch.inf)
        for radius in radii.tolist():
            interval = wilson(int((right & (size > radius)).sum()), len(labels))
            rows.append({"example": name, "radius": radius, **asdict(interval)})
    return pd.DataFrame(rows)


def accuracy_of(predictions: Tensor, labels: Tensor) -> Interval:
    """The share of predictions that equal the labels, in percent, with its 95 % interval."""
    return wilson(int((predictions == labels).sum()), len(labels))


def predict(network: Network, images: Tensor, *, hardware: Hardware, batch_size: int = BATCH) -> Tensor:
    """(N, K) float32 logits on the CPU of (N, C, H, W) images in [0, 1]. Raises ValueError for what `inputs` refuses."""
    return _outputs(network, inputs.pixels, network, images, hardware, batch_size)


def features(
    network: Network, images: Tensor, *, hardware: Hardware, at: str | None = None, batch_size: int = BATCH
) -> Tensor:
    """(N, C, h, w) float32 on the CPU: f_l of every image, by default at the network's split."""
    return _outputs(partial(network.features, at=at), inputs.pixels, network, images, hardware, batch_size)


def decide(
    network: Network, features: Tensor, *, hardware: Hardware, at: str | None = None, batch_size: int = BATCH
) -> Tensor:
    """(N,) class that f_l+ predicts from features, on the CPU."""
    return _outputs(partial(network.head, at=at), inputs.numbers, network, features, hardware, batch_size).argmax(1)


def _outputs(
    function: Callable[[Tensor], Tensor],
    checked: Callable[[Network, Tensor], Tensor],
    network: Network,
    given: Tensor,
    hardware: Hardware,
    batch_size: int,
) -> Tensor:
    with frozen(network), torch.no_grad():
        batches = (checked(network, batch.to(hardware.device)) for batch in given.split(batch_size))
        return inputs.finite(torch.cat([function(batch).float().cpu() for batch in batches]))
