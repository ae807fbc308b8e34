"""Drawn figures that show a method rather than data: boxes, arrows, and patches of images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray
from torch import Tensor

from companion.report.figures import INK, plain


class Box(NamedTuple):
    """A box of a diagram: its lower left corner, its size, its text, and its colour, `INK` for none in particular."""

    x: float
    y: float
    width: float
    height: float
    text: str
    colour: str = INK


def sketch(boxes: Mapping[str, Box], arrows: Sequence[tuple[str, str, str]], axis: Axes) -> None:
    """Draw boxes and arrows (from, to, text beside it) on an axes whose units are those of the boxes."""
    axis.set(
        xlim=(0, max(b.x + b.width for b in boxes.values()) + 2),
        ylim=(0, max(b.y + b.height for b in boxes.values()) + 2),
    )
    axis.set_axis_off()
    for box in boxes.values():
        style = dict(facecolor=box.colour, alpha=0.12, edgecolor="none")
        axis.add_patch(FancyBboxPatch((box.x, box.y), box.width, box.height, "round,pad=0.6", **style))
        axis.text(box.x + box.width / 2, box.y + box.height / 2, box.text, ha="center", va="center", fontsize=10)
    for begin, end, text in arrows:
        start, stop = _edges(boxes[begin], boxes[end])
        axis.annotate("", stop, start, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.4})
        flat = abs(start[1] - stop[1]) < abs(start[0] - stop[0])
        place = (start[0] + stop[0]) / 2 + (0 if flat else 1.2), (start[1] + stop[1]) / 2 + (1.0 if flat else 0)
        axis.text(*place, text, ha="center" if flat else "left", va="bottom" if flat else "center", fontsize=10)


def bottleneck() -> Figure:
    """The bottleneck of Kim et al. 2021 (their Fig. 1): how σ is found, and how it divides the channels."""
    drawing, (left, right) = plt.subplots(2, 1, figsize=(10, 7.4))
    boxes = {
        "image": Box(2, 16, 10, 9, "image $X$"),
        "features": Box(22, 16, 16, 9, "features\n$Z = f_l(X)$"),
        "noisy": Box(48, 16, 19, 9, "informative features\n$Z_I = Z + \\sigma\\cdot\\epsilon$", "C0"),
        "prediction": Box(80, 16, 18, 9, "prediction\n$f_{l+}(Z_I)$"),
        "variation": Box(22, 2, 16, 8, "variation $\\sigma_z^2$\nof each channel"),
        "noise": Box(48, 2, 19, 8, "$\\sigma$ of each channel,\n$\\epsilon \\sim \\mathcal{N}(0, I)$", "C1"),
        "loss": Box(80, 2, 18, 8, "$\\mathcal{L}_{CE}$ with the\ngiven label $Y$"),
    }
    arrows = [("image", "features", "$f_l$"), ("features", "noisy", ""), ("noisy", "prediction", "$f_{l+}$")]
    arrows += [("features", "variation", ""), ("noise", "noisy", ""), ("prediction", "loss", "")]
    arrows += [("variation", "noise", "$\\beta\\,\\mathcal{L}_I$"), ("loss", "noise", "learns $\\sigma$")]
    sketch(boxes, arrows, left)
    left.set_title(
        "(a) the search: $\\sigma$ minimises $\\mathcal{L}_{CE} + \\beta\\,\\mathcal{L}_I$ (Eqs. 3, 4)", fontsize=11
    )
    boxes = {
        "noise": Box(2, 8, 16, 9, "$\\sigma_k^2$ of every\nchannel $k$", "C1"),
        "robust": Box(30, 15, 18, 8, "robust index\n$i_r$: $\\sigma_k^2 > T$", "C2"),
        "other": Box(30, 2, 18, 8, "non-robust index\n$i_{nr} = 1 - i_r$", "C3"),
        "z_r": Box(58, 15, 15, 8, "$Z_r = i_r\\cdot Z$", "C2"),
        "z_nr": Box(58, 2, 15, 8, "$Z_{nr} = i_{nr}\\cdot Z$", "C3"),
        "said_r": Box(83, 15, 15, 8, "$f_{l+}(Z_r)$"),
        "said_nr": Box(83, 2, 15, 8, "$f_{l+}(Z_{nr})$"),
    }
    arrows = [("noise", "robust", ""), ("noise", "other", ""), ("robust", "z_r", ""), ("other", "z_nr", "")]
    arrows += [("z_r", "said_r", "$f_{l+}$"), ("z_nr", "said_nr", "$f_{l+}$")]
    sketch(boxes, arrows, right)
    right.set_title(
        "(b) the split: $T = \\max\\,\\sigma_z^2$ separates the channels, $Z = Z_r + Z_{nr}$ (Eq. 5)", fontsize=11
    )
    return drawing


def ibrar(layers: Sequence[str], regularised: Sequence[str]) -> Figure:
    """IB-RAR (Xu et al. 2022, Fig. 2): its terms on the `regularised` of a network's hidden `layers`, and its mask."""
    drawing, axis = plt.subplots(figsize=(10, 4.4))
    step = 76 / (len(layers) + 1)
    boxes = {"x": Box(1, 12, 9, 9, "batch $X$")}
    for number, name in enumerate(layers):
        colour = "C0" if name in regularised else INK
        boxes[name] = Box(14 + number * step, 12, step - 3.4, 9, f"$T_{{{number + 1}}}$\n{plain(name)}", colour)
    boxes["y"] = Box(14 + len(layers) * step, 12, step, 9, "logits")
    last = [name for name in layers if name.startswith("block")][-1:] or list(layers[-1:])
    boxes["terms"] = Box(30, 27, 44, 7, "$\\alpha\\sum_l I(X, T_l) - \\beta\\sum_l I(Y, T_l)$", "C0")
    boxes["loss"] = Box(82, 27, 16, 7, "$\\mathcal{L}_{CE}$ + terms\n(Eqs. 1, 2)", "C1")
    boxes["mask"] = Box(30, 1, 44, 6, "mask: $\\phi_c = 1$ if $I(f_c, Y) \\geq thr$, else 0 (Eq. 3)", "C2")
    path = ["x", *layers, "y"]
    arrows = [(a, b, "") for a, b in zip(path, path[1:], strict=False)]
    arrows += [(name, "terms", "") for name in layers if name in regularised]
    arrows += [("mask", last[0], ""), ("terms", "loss", ""), ("y", "loss", "")]
    sketch(boxes, arrows, axis)
    return drawing


def patterns(size: int = 48) -> dict[str, NDArray]:
    """Images (size, size) in [0, 1] of a made-up class: `A` its shape, `B` a small part, `C` an artefact beside it."""
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    head = (((x - 0.5) / 0.3) ** 2 + ((y - 0.56) / 0.34) ** 2 < 1).astype(float)
    ears = sum(
        (np.abs(x - place) < 0.4 * (y - 0.06)) & (y < 0.42) & (np.abs(x - place) < 0.12) for place in (0.28, 0.72)
    )
    nose = ((x - 0.5) ** 2 + (y - 0.62) ** 2 < 0.07**2) * (np.sin(40 * np.pi * x) > 0)
    shape = np.clip(head + ears, 0, 1) * 0.55
    corner = ((x < 0.16) & (y < 0.16)) * (np.sin(30 * np.pi * (x + y)) > 0)
    return {"A": shape, "B": np.clip(0.15 * shape + nose, 0, 1), "C": 0.9 * corner}


def feature_types() -> Figure:
    """Types A, B and C of features (Springer et al. 2021, Fig. 1): what each responds to in one image."""
    parts = patterns()
    image = np.clip(parts["A"] + parts["B"] + 0.4 * parts["C"], 0, 1)
    said = {
        "the image": "what a person and\na network are shown",
        "A: robust": "the shape that\npeople name",
        "B: non-robust, entangled": "a small part of that shape,\nas predictive but easily changed",
        "C: non-robust, artefact": "a trace of how the data was made,\nnot part of the shape",
    }
    drawing, axes = plt.subplots(1, 4, figsize=(10, 3.1))
    for axis, (title, text), part in zip(axes, said.items(), (image, *parts.values()), strict=True):
        axis.imshow(1 - part, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=11)
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.set_xlabel(text, fontsize=9)
    return drawing


def two_experiments(pictures: Mapping[str, Tensor], labels: Mapping[str, str]) -> Figure:
    """The experiments of Ilyas et al. 2019, Sec. 3 (their Fig. 1), with our images and the `labels` they carry.

    `pictures`: D, D_R and D_NR, then `clean` and `attacked`, (3, H, W) in [0, 1] or uint8."""
    drawing, axes = plt.subplots(2, 1, figsize=(10, 6.4), height_ratios=(36, 21))
    first = {
        "D": Box(2, 12, 13, 13, ""),
        "D_R": Box(46, 21, 11, 11, ""),
        "D_NR": Box(46, 5, 11, 11, ""),
        "trained on D_R": Box(64, 22, 33, 9, "standard training\nthe paper: accurate and robust", "C2"),
        "trained on D_NR": Box(64, 6, 33, 9, "standard training\nthe paper: accurate, not robust", "C3"),
    }
    arrows = [("D", "D_R", ""), ("D", "D_NR", "")]
    arrows += [("D_R", "trained on D_R", ""), ("D_NR", "trained on D_NR", "")]
    sketch(first, arrows, axes[0])
    axes[0].text(27, 25, "what a robust\nnetwork represents", ha="center", va="bottom", fontsize=10)
    axes[0].text(27, 11, "what a standard\nnetwork represents", ha="center", va="top", fontsize=10)
    axes[0].set_title("(a) robust and non-robust versions of a dataset (Sec. 3.1)", fontsize=11)
    second = {
        "clean": Box(2, 5, 13, 13, ""),
        "attacked": Box(45, 5, 13, 13, ""),
        "trained": Box(64, 7, 33, 9, "standard training, tested on\nordinary images; the paper: accurate", "C0"),
    }
    arrows = [("clean", "attacked", "small targeted\nperturbation"), ("attacked", "trained", "")]
    sketch(second, arrows, axes[1])
    axes[1].set_title("(b) labels that only non-robust features support (Sec. 3.2)", fontsize=11)
    for axis, boxes in zip(axes, (first, second), strict=True):
        axis.set_aspect("equal")
        for name, box in boxes.items():
            if name not in pictures:
                continue
            shown = pictures[name].permute(1, 2, 0).numpy()
            side = min(box.width, box.height)
            left = box.x + (box.width - side) / 2
            axis.imshow(shown, extent=(left, left + side, box.y, box.y + side), interpolation="none", zorder=2)
            axis.text(box.x + box.width / 2, box.y - 1, plain(labels[name]), ha="center", va="top", fontsize=9)
        axis.set(xlim=(0, 99), ylim=(0, 36 if boxes is first else 21))
        axis.grid(False)
    return drawing


def _edges(begin: Box, end: Box) -> tuple[tuple[float, float], tuple[float, float]]:
    """From the edge of one box to the edge of the other: sideways if they stand side by side, else up or down."""
    gap = 0.9
    if end.x > begin.x + begin.width:
        return (begin.x + begin.width + gap, begin.y + begin.height / 2), (end.x - gap, end.y + end.height / 2)
    if begin.x > end.x + end.width:
        return (begin.x - gap, begin.y + begin.height / 2), (end.x + end.width + gap, end.y + end.height / 2)
    left, right = max(begin.x, end.x), min(begin.x + begin.width, end.x + end.width)
    middle = (left + right) / 2
    if end.y > begin.y:
        return (middle, begin.y + begin.height + gap), (middle, end.y - gap)
    return (middle, begin.y - gap), (middle, end.y + end.height + gap)
