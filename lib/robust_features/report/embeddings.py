"""t-SNE of features (van der Maaten and Hinton 2008), and its grid of panels."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike


def tsne(
    parts: Mapping[str, Mapping[str, ArrayLike]], labels: ArrayLike, *, perplexity: float, seed: int
) -> pd.DataFrame:
    """One row a point: example, features, class index, x, y. `parts` maps example → kind → (N, …) features."""
    from sklearn.manifold import TSNE

    frames = []
    for example, kinds in parts.items():
        for kind, features in kinds.items():
            flat = np.asarray(features).reshape(len(labels), -1)
            points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(flat)
            frames.append(
                pd.DataFrame(points, columns=["x", "y"]).assign(
                    example=example, features=kind, label=np.asarray(labels)
                )
            )
    return pd.concat(frames, ignore_index=True)


def grid(points: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """One row an example set, one column a kind of feature, coloured by class; the legend names at most ten classes."""
    from robust_features.report.tables import label

    examples, kinds = points["example"].unique(), points["features"].unique()
    drawing, axes = plt.subplots(len(examples), len(kinds), figsize=(3 * len(kinds), 3 * len(examples)), squeeze=False)
    for line, example in zip(axes, examples, strict=True):
        for axis, kind in zip(line, kinds, strict=True):
            part = points[(points["example"] == example) & (points["features"] == kind)]
            cloud = axis.scatter(part["x"], part["y"], c=part["label"], s=9, cmap="tab10", linewidths=0)
            axis.set(xticks=[], yticks=[], title=f"{label(example)}: ${kind.replace('_nr', '_{nr}')}$")
    handles, numbers = cloud.legend_elements(num=list(range(min(10, len(classes)))))
    names = [classes[int(number)] for number in range(len(handles))]
    drawing.legend(handles, names, loc="outside right center", title="true class")
    return drawing
