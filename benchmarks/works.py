"""The works that are timed: each once by this library and once by a peer, and something both must agree on."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmarks import peers
from companion import datasets
from companion.datasets import Digits, ImageSet
from robust_features import attacks, bottleneck, evaluation, training
from robust_features.attacks import PGD, CarliniWagner
from robust_features.batches import Augmentation, as_float
from robust_features.construction import Robustified, construct, others
from robust_features.dependence import HSIC
from robust_features.evaluation import attack_all
from robust_features.hardware import Hardware
from robust_features.networks import VGG16, Network, build
from robust_features.regularisers import IBRAR

EPSILON, STEP = 0.2, 0.046  # of the digits; the step is Kim et al.'s, 2.3 epsilon over ten steps
BATCH = 100  # both sides' batch, the one of Kim et al.'s code
ON_A_GPU = 1000  # both sides' batch of an attack there: fewer do not fill it
COPIES = {"epoch": 20, "pgd": 10}  # of the images there, so that a call takes long enough to be timed
C = 10.0  # of CW and of the four attacks; Kim et al. have 0.1, for photographs
FOUR = {"NRF": ("nonrobust", "raise"), "NRF2": ("nonrobust", "lower")}
FOUR |= {"RF": ("robust", "raise"), "RF2": ("robust", "lower")}

ROBUST = ("block5", "fc1", "fc2")  # Xu et al.'s robust layers
AS_THEIRS = bottleneck.Bottleneck(threshold="batch", batch_size=BATCH)

ADAM_RATE, ADAM_STEPS = 0.2, 32  # of the plain robustification

Outcome = dict[str, float]  # what both sides must agree on; accuracies in percent


@dataclass(frozen=True)
class Bench:
    """What the works share: one adversarially trained network, as the library keeps it and as a peer is given it."""

    network: Network
    plain: Network  # contiguous, parameters requiring gradients
    train: ImageSet
    test: ImageSet
    hardware: Hardware
    vgg: VGG16

    @property
    def gpu(self) -> bool:
        return self.hardware.device.type == "cuda"

    @property
    def batch(self) -> int:
        """Both sides' batch of an attack."""
        return ON_A_GPU if self.gpu else BATCH


@dataclass(frozen=True)
class Work:
    """`target` is how many times faster than the peer we want to be, on a CPU and on a GPU."""

    name: str
    peer: str
    target: tuple[float, float]
    images: ImageSet
    ours: Callable[[ImageSet], Outcome]
    theirs: Callable[[ImageSet], Outcome]
    rounds: int = 3
    warm: int = 20  # images of the warm-up
    profiled: bool = True  # not where a call is thousands of steps: a profile keeps every operation in memory
    note: str = ""


def settings(vgg: VGG16, *, steps: int, epochs: int, batch_size: int, learning_rate: float, flip: bool):
    """Adversarial training on digits."""
    attack = PGD(epsilon=EPSILON, step_size=STEP if steps == 10 else 0.15, steps=steps)
    return training.Training(
        dataset="digits",
        network=vgg,
        objective={"kind": "adversarial", "attack": attack},
        optimiser=training.SGD(learning_rate=learning_rate, weight_decay=1e-2),
        schedule=training.StepLR(every=6, gamma=0.2),
        epochs=epochs,
        batch_size=batch_size,
        augmentation=Augmentation(padding=4 if flip else 2, flip=flip),
        monitor=attack,
    )


def prepare(hardware: Hardware, width: float, report: Callable[[str], None] = print) -> Bench:
    """1,000 test digits and a VGG-16 trained on 700 others.

    Pixels are kept within 3 to 252: peers that search through tanh never move a pixel of exactly 0 or 1.
    """
    splits = datasets.read(Digits(size=32, train=700, validation=97, test=1000), seed=0)
    inner = {n: ImageSet(s.images.clamp(3, 252), s.labels, s.classes, s.name) for n, s in splits.items()}
    vgg = VGG16(width=width)
    how = settings(vgg, steps=3, epochs=8, batch_size=32, learning_rate=0.0125 / width, flip=False)
    network = training.train(inner, how, hardware=hardware, report=report).network.requires_grad_(True)
    plain = deepcopy(network).to(memory_format=torch.contiguous_format)
    return Bench(network, plain, inner["train"], inner["test"], hardware, vgg)


def works(bench: Bench) -> list[Work]:
    """All works, cheapest first."""
    test, short = bench.test, bench.test.take(slice(ON_A_GPU if bench.gpu else 200))
    many = test.take(torch.arange(len(test)).repeat(COPIES["pgd"] if bench.gpu else 1))
    epoch = bench.train.take(torch.arange(len(bench.train)).repeat(COPIES["epoch"] if bench.gpu else 1))
    hundred, step = bench.test.take(slice(100)), {"epsilon": EPSILON, "step_size": STEP, "steps": 10}
    pgd, first = PGD(**step), {"note": "ours lets an image rest at its first misclassified iterate"}
    torch_pgd = _peer(bench, peers.torchattack, "PGD", eps=EPSILON, alpha=STEP, steps=10)
    keep_first = _lazy(bench, lambda: PGD(**step, until="fooled"))
    torch_apgd = _peer(bench, peers.torchattack, "APGD", eps=EPSILON, steps=50)
    our_apgd = _lazy(bench, lambda: attacks.APGD(epsilon=EPSILON, steps=50))
    return [
        Work("PGD-10, robust accuracy", "torchattacks", (3, 5), many, keep_first, torch_pgd, **first),
        Work("PGD-10, robust accuracy", "foolbox", (3, 5), many, keep_first,
             _peer(bench, peers.foolbox_pgd, **step), **first),
        Work("PGD-10, same steps for every image", "torchattacks", (3, 5), many, _lazy(bench, lambda: pgd), torch_pgd),
        Work("PGD-10 training epoch", "Kim et al.", (3, 10), epoch, _our_epoch(bench), _their_epoch(bench),
             warm=200, rounds=1 if bench.gpu else 3,
             note="each side draws its own order, crops, flips and starts"),
        Work("distillation, 200 steps", "Kim et al.", (10, 50), test, _our_sigma(bench), _their_sigma(bench),
             note="from images to channel indices, the threshold over batches of 100 as in their code"),
        Work("CW, 200 steps", "torchattacks", (3, 5), short, _lazy(bench, lambda: CarliniWagner(c=C, steps=200)),
             _peer(bench, peers.torchattack, "CW", c=C, steps=200, lr=0.1), rounds=1,
             note="both look ten times whether the loss still falls, and stop: theirs the batch, ours the image"),
        Work("FAB, 20 steps", "torchattacks", (3, 5), short,
             _lazy(bench, lambda: attacks.FAB(epsilon=EPSILON, steps=20)),
             _peer(bench, peers.torchattack, "FAB", eps=EPSILON, steps=20, n_classes=10), rounds=1),
        Work("APGD-CE, 50 steps", "torchattacks", (3, 5), short, our_apgd, torch_apgd, rounds=1),
        Work("APGD-CE, 50 steps", "Croce and Hein", (3, 5), short, our_apgd,
             _peer(bench, peers.apgd, epsilon=EPSILON, steps=50), rounds=1),
        Work("NRF, NRF2, RF, RF2", "Kim et al.", (4, 10), short, _our_four(bench), _their_four(bench),
             rounds=1, warm=10, profiled=False,
             note="both look three times whether the loss still falls, and stop: theirs the batch, ours the image"),
        Work("training step with IB-RAR, three layers", "the step without it", (0.8, 0.87), test,
             _step(bench, _our_terms), _step(bench, None), note="0.8: it may cost a quarter more"),
        Work("training step with IB-RAR, three layers", "Xu et al.", (1, 1), test, _step(bench, _our_terms),
             _step(bench, _their_terms)),
        Work("dependence of 512 channels", "Xu et al.", (20, 100), hundred, _our_channels(bench),
             _their_channels(bench), warm=100, note="on labels and on images, of random features"),
        Work("robustification, as near", "Adam, batch by batch", (3, 10), short, _our_images(bench),
             _their_images(bench), rounds=1,
             note="20 steps of L-BFGS; of Adam as many as come as near, at the best of its rates 0.03, 0.1, 0.2, 0.3"),
        Work("AutoAttack, standard", "Croce and Hein", (3, 5), short,
             _lazy(bench, lambda: attacks.AutoAttack(epsilon=EPSILON)),
             _peer(bench, peers.autoattack, epsilon=EPSILON), rounds=1, warm=4, profiled=False),
    ]  # fmt: skip


def robust_accuracy(predictions: Tensor, labels: Tensor, linf: Tensor | None = None) -> float:
    """Percent of images still classified right, or, where `linf` is given, misclassified only outside of the ball."""
    outside = False if linf is None else linf > EPSILON + 1e-5
    return 100 * ((predictions == labels) | outside).double().mean().item()


def _lazy(bench: Bench, attack: Callable[[], object]) -> Callable[[ImageSet], Outcome]:
    def ours(images: ImageSet) -> Outcome:
        made = attack()
        found = attack_all(made, bench.network, images, hardware=bench.hardware, seed=0, batch_size=bench.batch)
        bounded = not isinstance(made, CarliniWagner)
        return {"accuracy": robust_accuracy(found.predictions, images.labels, found.linf if bounded else None)}

    return ours


def _peer(bench: Bench, attack: Callable[..., Tensor], *names: str, **options: object) -> Callable[[ImageSet], Outcome]:
    def theirs(images: ImageSet) -> Outcome:
        return {
            "accuracy": _attack_with(
                lambda *given: attack(*names, bench.plain.eval(), *given, **options), bench, images
            )
        }

    return theirs


def _attack_with(attack: Callable[[Tensor, Tensor], Tensor], bench: Bench, images: ImageSet, net=None) -> float:
    """Robust accuracy under a peer's attack, a batch at a time, as a script around it would do."""
    predictions = []
    for batch, labels in zip(images.images.split(bench.batch), images.labels.split(bench.batch), strict=True):
        clean = (batch.to(bench.hardware.device).float() / 255).contiguous()
        adversarial = attack(clean, labels.to(bench.hardware.device))
        with torch.no_grad():
            predictions.append((net or bench.plain)(adversarial).argmax(1).cpu())
    return robust_accuracy(torch.cat(predictions), images.labels)


def _our_epoch(bench: Bench) -> Callable[[ImageSet], Outcome]:
    how = settings(bench.vgg, steps=10, epochs=1, batch_size=BATCH, learning_rate=0.01, flip=True)

    def ours(images: ImageSet) -> Outcome:
        splits = {"train": images, "validation": images.take(slice(2))}
        trained = training.train(splits, how, hardware=bench.hardware, report=lambda line: None)
        return {"loss": trained.history[-1]["loss"]}

    return ours


def _their_epoch(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def theirs(images: ImageSet) -> Outcome:
        vgg = peers.kim_vgg(build(bench.vgg, len(images.classes), seed=0).to(bench.hardware.device))
        step = {"epsilon": EPSILON, "step_size": STEP, "steps": 10}
        return {"loss": peers.kim_training_epoch(vgg, images, batch_size=BATCH, rate=0.01, **step)}

    return theirs


def _our_sigma(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def ours(images: ImageSet) -> Outcome:
        z = evaluation.features(bench.network, as_float(images.images), hardware=bench.hardware)
        found = bottleneck.distil(
            bench.network, z, images.labels, AS_THEIRS, hardware=bench.hardware, generator=Generator().manual_seed(0)
        )
        return {"robust_channels": 100 * found.robust.double().mean().item()}

    return ours


def _their_sigma(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def theirs(images: ImageSet) -> Outcome:
        kim, shares = _kim(bench), []
        for batch, labels in zip(images.images.split(BATCH), images.labels.split(BATCH), strict=True):
            clean = batch.to(bench.hardware.device).float() / 255
            with peers.written_for_cuda():
                found = kim.find_features(clean, labels.to(bench.hardware.device), 3, forward_version=True)
            shares.append(100 * found[5].double().mean().item())
        return {"robust_channels": sum(shares) / len(shares)}

    return theirs


def _our_four(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def ours(images: ImageSet) -> Outcome:
        found = {}
        for name, (units, direction) in FOUR.items():
            attack = attacks.FeatureGradient(units=units, direction=direction, unit="batch", c=C, bottleneck=AS_THEIRS)
            result = attack_all(attack, bench.network, images, hardware=bench.hardware, seed=0, batch_size=BATCH)
            found[f"{name}_accuracy"] = robust_accuracy(result.predictions, images.labels)
        return found

    return ours


def _their_four(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def theirs(images: ImageSet) -> Outcome:
        kim = _kim(bench)
        with peers.written_for_cuda():
            return {f"{name}_accuracy": _attack_with(getattr(kim, name), bench, images, kim.model) for name in FOUR}

    return theirs


def _kim(bench: Bench) -> nn.Module:
    channels = bench.network.stages["logits"].in_features
    return peers.kim_features(bench.network, beta=0.3 * channels / bench.network.full_channels, c=C)


Terms = Callable[[Network, dict[str, Tensor], Tensor, Tensor], Tensor]


def _step(bench: Bench, terms: Terms | None) -> Callable[[ImageSet], Outcome]:
    """Training steps of Xu et al.'s VGG-16 without adversarial examples, 100 images each, with these loss terms."""
    vgg = replace(bench.vgg, hidden=2)

    def train(images: ImageSet) -> Outcome:
        network = bench.hardware.place(build(vgg, len(images.classes), seed=0)).train()
        optimiser, losses = training.SGD(learning_rate=0.01, momentum=0.9).build(network), []
        for batch, labels in zip(images.images.split(BATCH), images.labels.split(BATCH), strict=True):
            clean, labels = as_float(batch.to(bench.hardware.device)), labels.to(bench.hardware.device)
            with bench.hardware.autocast(bench.hardware.precision_of(network)):
                outputs = network.activations(clean)
                loss = F.cross_entropy(outputs["logits"], labels)
            loss = loss + terms(network, outputs, clean, labels) if terms else loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return {"loss": torch.stack(losses).mean().item()}

    return train


def _our_terms(network: Network, outputs: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return IBRAR(layers=ROBUST)(network, (outputs,), images, labels, given=(images,))


def _their_terms(network: Network, outputs: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    one_hot = F.one_hot(labels, outputs["logits"].shape[1]).float()
    pairs = [peers.xu_hsic(outputs[layer].flatten(1), one_hot, images.flatten(1), "linear") for layer in ROBUST]
    return sum(0.008 * x - 0.08 * y for x, y in pairs)


def _channels(bench: Bench, images: ImageSet) -> tuple[Tensor, Tensor, Tensor]:
    """512 channels of random features after a ReLU, the images, and the labels."""
    features = torch.randn(len(images), 512, 2, 2, generator=Generator().manual_seed(0)).relu()
    return tuple(t.to(bench.hardware.device) for t in (features, images.images.float() / 255, images.labels))


def _our_channels(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def ours(images: ImageSet) -> Outcome:
        features, clean, labels = _channels(bench, images)
        hsic = HSIC(labels="gaussian")
        both = torch.stack([hsic.of_labels(labels, 10), hsic.of_features(clean)])
        found = hsic.by_channel(features, both).mean(1)
        return dict(zip(("on_labels", "on_images"), found.tolist(), strict=True))

    return ours


def _their_channels(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def theirs(images: ImageSet) -> Outcome:
        features, clean, labels = _channels(bench, images)
        one_hot = F.one_hot(labels, 10).float()
        found = [peers.xu_hsic(f.flatten(1), one_hot, clean.flatten(1), "gaussian") for f in features.unbind(1)]
        return {"on_labels": sum(y for _, y in found).item() / 512, "on_images": sum(x for x, _ in found).item() / 512}

    return theirs


def _our_images(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def ours(images: ImageSet) -> Outcome:
        how = Robustified(steps=20, method="lbfgs")
        made = construct(how, bench.network, images, hardware=bench.hardware, seed=0, batch_size=BATCH)
        return {"distance_left": 100 * (made.after.double().mean() / made.before.double().mean()).item()}

    return ours


def _their_images(bench: Bench) -> Callable[[ImageSet], Outcome]:
    def theirs(images: ImageSet) -> Outcome:
        wanted = as_float(images.images.to(bench.hardware.device)).contiguous()
        start, options = wanted[others(len(images), 0)], dict(rate=ADAM_RATE, steps=ADAM_STEPS, batch_size=BATCH)
        before, after = peers.adam_robustification(bench.plain.eval(), wanted, start, **options)
        return {"distance_left": 100 * (after.double().mean() / before.double().mean()).item()}

    return theirs
