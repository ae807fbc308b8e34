"""Where features lie: t-SNE (van der Maaten and Hinton 2008) and its grid of panels; whose features are nearest."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from companion.report.figures import plain
from robust_features.settings import UserError
from robust_features.statistics import Interval, wilson

SYMBOLS = {"Z": "$Z$", "Z_r": "$Z_r$", "Z_nr": "$Z_{nr}$", "T": "$T$"}
ALIKE = "all features alike"


def tsne(
    parts: Mapping[str, Mapping[str, ArrayLike]], labels: ArrayLike, *, perplexity: float, seed: int
) -> pd.DataFrame:
    """One row per point: example, features, class index, x, y. `parts` maps example → kind → (N, …) features.

    A column `note`, where there is one, says what else was done: of N images or fewer the perplexity is (N − 1) / 3,
    and features that are all alike are one point. Raises UserError for features that are not finite."""
    frames = []
    for example, kinds in parts.items():
        for kind, features in kinds.items():
            points, note = _embed(_flat(features, labels, f"t-SNE of {example}, {kind}"), perplexity, seed)
            frame = pd.DataFrame(points, columns=["x", "y"])
            frame = frame.assign(example=example, features=kind, label=np.asarray(labels))
            frames.append(frame.assign(note=note) if note else frame)
    found = pd.concat(frames, ignore_index=True)
    return found.fillna({"note": ""}) if "note" in found else found


def neighbours(features: ArrayLike, labels: ArrayLike, *, count: int = 10) -> Interval:
    """How many images, in percent, have the class of most of their `count` nearest other images, by (N, …) features.

    Distances are Euclidean; of classes that are equally frequent the lowest index counts, and of N images or fewer all
    others are asked. Raises UserError for features that are not finite."""
    from sklearn.neighbors import NearestNeighbors

    labels, flat = np.asarray(labels), _flat(features, labels, "nearest neighbours")
    found = NearestNeighbors(n_neighbors=min(count, len(flat) - 1)).fit(flat).kneighbors(return_distance=False)
    votes = np.array([np.bincount(labels[others]).argmax() for others in found])
    return wilson(int((votes == labels).sum()), len(labels))


def _flat(features: ArrayLike, labels: ArrayLike, what: str) -> NDArray:
    """Features as (N, D), which have to be finite, and of as many images as there are labels."""
    if len(features) != len(labels):
        raise ValueError(f"{what}: features of {len(features)} images, labels of {len(labels)}")
    flat = np.asarray(features).reshape(len(labels), int(np.prod(np.shape(features)[1:])))
    if odd := int((~np.isfinite(flat)).any(axis=1).sum()):
        raise UserError(
            f"{what}: the features of {odd} of {len(flat)} images are not finite; "
            "look at the network's weights, training may have diverged"
        )
    return flat


def _embed(flat: NDArray, perplexity: float, seed: int) -> tuple[NDArray, str]:
    """(N, 2) points of (N, D) features, and a note. scikit-learn crashes if the features are all alike."""
    from sklearn.manifold import TSNE

    spread = np.ptp(flat.astype(float), axis=0).max(initial=0.0) if len(flat) else 0.0
    if spread == 0:
        return np.zeros((len(flat), 2)), ALIKE
    if not 1e-6 < spread < 1e6:  # whose squares float32 may not hold; t-SNE does not depend on the scale
        flat = (flat.astype(float) - flat.astype(float).mean(axis=0)) / spread
    flat = np.pad(flat, ((0, 0), (0, max(0, 2 - flat.shape[1]))))  # t-SNE begins from two principal components
    note = ""
    if perplexity >= len(flat):
        perplexity = (len(flat) - 1) / 3
        note = f"perplexity {perplexity:.3g} for {len(flat)} images"
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(flat), note


def grid(points: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """One row per example set, one column per kind of feature, by class; the legend names ten classes at most."""
    from companion.report.tables import label

    examples, kinds = points["example"].unique(), points["features"].unique()
    drawing, axes = plt.subplots(len(examples), len(kinds), figsize=(3 * len(kinds), 3 * len(examples)), squeeze=False)
    for line, example in zip(axes, examples, strict=True):
        for axis, kind in zip(line, kinds, strict=True):
            part = points[(points["example"] == example) & (points["features"] == kind)]
            colours = {"c": part["label"], "cmap": "tab10", "vmin": 0, "vmax": max(1, len(classes) - 1)}
            cloud = axis.scatter(part["x"], part["y"], **colours, s=9, linewidths=0)
            axis.set(xticks=[], yticks=[], title=f"{plain(label(example))}: {SYMBOLS.get(kind, plain(kind))}")
            for note in part["note"].unique() if "note" in part else ():
                axis.text(0.5, 0.02, note, transform=axis.transAxes, ha="center", fontsize=8)
    named = range(min(10, len(classes)))
    handles = [plt.Line2D([], [], ls="", marker="o", ms=3, color=cloud.cmap(cloud.norm(number))) for number in named]
    names = [plain(classes[number]) for number in named]
    across = 3 if len(kinds) == 1 else 5
    drawing.legend(handles, names, loc="outside lower left", ncols=across, title="true class", fontsize=8)
    return drawing
