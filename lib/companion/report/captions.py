"""What a table's or figure's numbers were measured with, for its caption: taken from the settings, never typed."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from companion.params import Run
from companion.report.shown import Conditions
from companion.report.tables import label
from robust_features.attacks import Attack
from robust_features.networks import label as network_label


def conditions(run: Run, *names: str, attacks: Collection[str] = (), also: str = "") -> Conditions:
    """The networks of groups or members (`kim/vgg16`, `kim/vgg16/adversarial`) and named attacks on them, in sentences.

    Says network, dataset, epochs and seeds; norm, ε and steps of each attack that the groups make; the bottleneck of
    groups that distil; then `also`. Names that are not part of this scale are left out."""
    groups = {name: run.networks[group] for name in names if (group := _group(run, name))}
    chosen = {name: [*_members(name, group)] for name, group in groups.items()}
    trained = _grouped(
        (f"on {_learnt(run, model.dataset)} ({model.epochs} epochs)", network_label(model.network))
        for models in chosen.values()
        for model in models
    )
    seeds = sorted({seed for group in groups.values() for seed in group.seeds})
    networks = "; ".join(f"{' and '.join(each)} {where}" for where, each in trained.items())
    said = [f"Networks: {networks}; seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."]
    made_on = _grouped(
        ((label(name), *_said(group.attacks[name])), label(_dataset(run, model.dataset)))
        for name in attacks
        for of, group in groups.items()
        if name in group.attacks
        for model in chosen[of]
    )
    balls = _grouped(
        ((name, effort), f"{ball} on {' and '.join(data)}" if "≤" in ball else ball)
        for (name, ball, effort), data in made_on.items()
    )
    within = _grouped(("; ".join(where), f"{name} ({effort})") for (name, effort), where in balls.items())
    said += [
        f"Attacks {'' if ball.startswith('without') else 'with '}{ball}: {', '.join(each)}."
        for ball, each in within.items()
    ]
    for how in dict.fromkeys(group.bottleneck for group in groups.values() if group.bottleneck):
        said.append(f"Bottleneck: {how.steps} steps, β = {how.beta:g} unless varied.")
    counts = tuple(sorted({len(group.seeds) for group in groups.values()}))
    return Conditions(" ".join([*said, *([also] if also else [])]), counts)


def _grouped(pairs: Iterable[tuple[Any, str]]) -> dict[Any, list[str]]:
    """The values of each key, each once, in the order met."""
    found: dict[Any, list[str]] = {}
    for key, value in pairs:
        if value not in found.setdefault(key, []):
            found[key].append(value)
    return found


def _dataset(run: Run, name: str) -> str:
    """The dataset that a network is tested on: what a constructed set, if it learnt from one, is made from."""
    made = next((entry for key, entry in run.constructed.items() if name.startswith(f"{key}/")), None)
    return made.dataset if made else name


def _learnt(run: Run, name: str) -> str:
    """What a network learnt from: Digits, or the set `random` of Digits."""
    made = next((key for key in run.constructed if name.startswith(f"{key}/")), "")
    return f"the set {name.removeprefix(f'{made}/')} of {label(_dataset(run, name))}" if made else label(name)


def _group(run: Run, name: str) -> str:
    """The group that a name belongs to, or is; empty if this scale has none."""
    return next((each for each in (name, name.rpartition("/")[0]) if each in run.networks), "")


def _members(name: str, group: Any) -> Iterator[Any]:
    """The trainings that a name stands for: one member's, or all."""
    last = name.rpartition("/")[2]
    yield from [group.members[last]] if last in group.members else group.members.values()


def _said(attack: Attack) -> tuple[str, str]:
    """The ball of an attack and what it spends there: ("L∞ ≤ 0.2", "10 steps")."""
    inner = getattr(attack, "pgd", attack)
    epsilon = getattr(inner, "epsilon", None)
    norm = {"linf": "L∞", "l2": "L2"}[getattr(inner, "norm", "linf")]
    parts = [f"{inner.steps} step{'s' if inner.steps > 1 else ''}"] if hasattr(inner, "steps") else []
    parts += [f"{inner.queries} queries"] if hasattr(inner, "queries") else []
    parts += [f"{inner.restarts} restarts"] if getattr(inner, "restarts", 1) > 1 else []
    parts += [f"c = {inner.c:g}"] if hasattr(inner, "c") else []
    return f"{norm} ≤ {epsilon:.4g}" if epsilon else "without bound", ", ".join(parts)
