"""The other implementations, called as their authors meant them to be, on a network of ours.

Packages come from the extra `bench`; checkouts lie in the folder named by BENCHMARK_PEERS, by default beside the
project. They are never edited: what their code takes for granted (a CUDA device) is provided around the call.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from companion.datasets import ImageSet
from companion.paths import ROOT
from robust_features.networks import Network

FOLDER = Path(os.environ.get("BENCHMARK_PEERS", ROOT.parent))
REPOSITORIES = {"auto-attack": "fra31", "Adversarial-Information-Bottleneck": "ByungKwanLee", "IB-RAR": "xiaoyunxxy"}


class Absent(Exception):
    """A peer is not on this machine; the message says how to get it."""


def package(name: str) -> ModuleType:
    """An installed peer. Raises Absent."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Absent(f"{name} is not installed: pip install --editable '.[bench,dev]'") from error


def checkout(repository: str, module: str) -> ModuleType:
    """A module of a checkout, whose folder is on the search path during the import only. Raises Absent."""
    folder = FOLDER.resolve() / repository
    if not folder.is_dir():
        url = f"https://github.com/{REPOSITORIES[repository]}/{repository}"
        raise Absent(f"{repository} is not in {FOLDER}: git clone {url} {folder}, or set BENCHMARK_PEERS")
    sys.path.insert(0, str(folder))
    try:
        found = importlib.import_module(module)
    finally:
        sys.path.remove(str(folder))
    if not Path(found.__file__).is_relative_to(folder):
        raise Absent(f"{module} was imported from {found.__file__}, which hides the one in {folder}")
    return found


@contextmanager
def written_for_cuda() -> Iterator[None]:
    """Where `.cuda()` is harmless without CUDA; with it, `torch.eye`, which they index there, is made there."""
    if torch.cuda.is_available():
        eye = torch.eye
        with mock.patch.object(torch, "eye", lambda n: eye(n, device="cuda")):
            yield
    else:
        same = lambda self, *_, **__: self  # noqa: E731
        with mock.patch.object(Tensor, "cuda", same), mock.patch.object(nn.Module, "cuda", same):
            yield


def torchattack(name: str, network: nn.Module, images: Tensor, labels: Tensor, **options: object) -> Tensor:
    """An attack of torchattacks."""
    with written_for_cuda():
        return getattr(package("torchattacks"), name)(network, **options)(images, labels)


def foolbox_pgd(
    network: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, step_size: float, steps: int
) -> Tensor:
    """foolbox's LinfPGD."""
    foolbox = package("foolbox")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps)
    return attack(foolbox.PyTorchModel(network, bounds=(0, 1)), images, labels, epsilons=epsilon)[1]


def apgd(network: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int) -> Tensor:
    """The APGD-CE of Croce and Hein."""
    make = checkout("auto-attack", "autoattack.autopgd_base").APGDAttack
    attack = make(network, eps=epsilon, n_iter=steps, device=images.device)
    return attack.perturb(images, labels)


def autoattack(network: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """The standard AutoAttack of Croce and Hein: 100 steps, 9 targets, 5,000 queries."""
    make = checkout("auto-attack", "autoattack").AutoAttack
    attack = make(network, eps=epsilon, seed=0, verbose=False, device=images.device)
    return attack.run_standard_evaluation(images, labels, bs=len(images))


def kim_vgg(network: Network) -> nn.Module:
    """Kim et al.'s VGG-16 as wide as ours, with our weights: the same layers in the same order."""
    theirs, channels = checkout("Adversarial-Information-Bottleneck", "model.vgg"), _widths(network)
    stages = [width if width == "M" else channels.pop(0) for width in theirs.cfgs["vgg16"]]
    last = network.stages["logits"]
    vgg = theirs.VGG_IFD_class(theirs.make_layers(stages, 3, batch_norm=True), last.out_features, 0.5, 0.25)
    vgg.classifier = nn.Linear(last.in_features, last.out_features)
    vgg.load_state_dict(dict(zip(vgg.state_dict(), network.state_dict().values(), strict=True)))
    return vgg.to(last.weight.device)


def kim_features(network: Network, *, beta: float, c: float) -> nn.Module:
    """Their bottleneck and four attacks on our network; `beta` and `c` where the digits need others than theirs."""
    found = checkout("Adversarial-Information-Bottleneck", "model.IFP").InformativeFeaturePackage(kim_vgg(network))
    found.beta, found.cw_c = beta, c
    return found.eval()


class Photographs(Dataset):
    """Images one by one through PIL and torchvision's transforms, as the datasets of torchvision hand them out."""

    def __init__(self, images: ImageSet, padding: int):
        from torchvision import transforms as t

        self.images, self.labels = images.images.permute(0, 2, 3, 1).numpy(), images.labels.tolist()
        crop = t.RandomCrop(self.images.shape[1], padding=padding)
        self.transform = t.Compose([t.ToPILImage(), crop, t.RandomHorizontalFlip(), t.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def kim_training_epoch(
    network: nn.Module, images: ImageSet, *, batch_size: int, epsilon: float, step_size: float, steps: int, rate: float
) -> float:
    """Mean loss of an epoch with the parts, and the order of operations, of Kim et al.'s train_AT.py."""
    device = next(network.parameters()).device
    batches = DataLoader(Photographs(images, 4), batch_size, shuffle=True, pin_memory=device.type == "cuda")
    attack = package("torchattacks").PGD(network, eps=epsilon, alpha=step_size, steps=steps)
    optimiser = torch.optim.SGD(network.parameters(), rate, weight_decay=1e-2)
    total, correct = 0.0, 0
    network.train()
    for batch, labels in batches:
        batch, labels = batch.to(device), labels.to(device)
        adversarial = attack(batch, labels)
        optimiser.zero_grad()
        loss = F.cross_entropy(network(adversarial), labels)
        loss.backward()
        optimiser.step()
        correct += (network(adversarial).detach().argmax(1) == labels).sum().item()  # theirs, for its progress line
        total += loss.item()
    return total / len(batches)


def _widths(network: Network) -> list[int]:
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def xu_hsic(features: Tensor, labels: Tensor, images: Tensor, labels_kernel: str) -> tuple[Tensor, Tensor]:
    """Xu et al.'s dependence of flattened features on flattened images and on one-hot labels, σ = 5."""
    theirs = checkout("IB-RAR", "hsic").hsic_normalized_cca
    return theirs(features, images, sigma=5), theirs(features, labels, sigma=5, k_type_y=labels_kernel)


def adam_robustification(
    network: Network, wanted: Tensor, start: Tensor, *, steps: int, rate: float, batch_size: int
) -> tuple[Tensor, Tensor]:
    """(N,) distances of representations at the start and end of a plain loop: torch's Adam on each batch's pixels."""
    first, last = [], []
    for x, goal in zip(start.split(batch_size), wanted.split(batch_size), strict=True):
        x = x.clone().requires_grad_(True)
        with torch.no_grad():
            goal = network.features(goal, network.representation).flatten(1)
        optimiser = torch.optim.Adam([x], rate)
        for step in range(steps + 1):
            distance = (network.features(x, network.representation).flatten(1) - goal).norm(dim=1)
            if step == 0:
                first.append(distance.detach())
            if step == steps:
                last.append(distance.detach())
                break
            optimiser.zero_grad()
            distance.sum().backward()
            optimiser.step()
            x.data.clamp_(0, 1)
    return torch.cat(first), torch.cat(last)
