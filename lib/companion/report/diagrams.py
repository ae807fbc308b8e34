"""Drawn figures that show a method rather than data."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from companion.report.figures import INK


def bottleneck() -> Figure:
    """The Information Bottleneck of Kim et al. 2021 (their Fig. 1): what is computed, what is compared, what is learnt."""
    drawing, axis = plt.subplots(figsize=(10, 3.6))
    axis.set(xlim=(0, 100), ylim=(0, 36))
    axis.set_axis_off()
    boxes = {
        "image": (2, 20, 12, "image $X$", "none"),
        "features": (22, 20, 16, "features\n$Z = f_l(X)$", "none"),
        "noisy": (48, 20, 18, "informative features\n$Z_I = Z + \\sigma\\cdot\\epsilon$", "C0"),
        "prediction": (76, 20, 20, "prediction\n$f_{l+}(Z_I)$", "none"),
        "variation": (22, 4, 16, "variation $\\sigma_z^2$\nover positions", "none"),
        "noise": (48, 4, 18, "$\\sigma$ a channel: learnt\n$\\epsilon \\sim \\mathcal{N}(0, I)$", "C1"),
        "verdict": (76, 4, 20, "robust if\n$\\sigma_k^2 > T = \\max\\,\\sigma_z^2$", "C2"),
    }
    for x, y, width, text, colour in boxes.values():
        fill = colour if colour != "none" else INK
        axis.add_patch(FancyBboxPatch((x, y), width, 10, "round,pad=0.6", facecolor=fill, alpha=0.12, edgecolor="none"))
        axis.text(x + width / 2, y + 5, text, ha="center", va="center", fontsize=11)
    for start, end in (("image", "features"), ("features", "noisy"), ("noisy", "prediction"), ("noise", "verdict")):
        _arrow(
            axis,
            (boxes[start][0] + boxes[start][2] + 0.9, boxes[start][1] + 5),
            (boxes[end][0] - 0.9, boxes[end][1] + 5),
        )
    _arrow(axis, (57, 14.9), (57, 19.1))
    _arrow(axis, (30, 19.1), (30, 14.9))
    _arrow(axis, (38.9, 9), (47.1, 9), "<->")
    axis.text(43, 10.5, "$\\beta\\,\\mathcal{L}_I$", ha="center", fontsize=12)
    axis.text(86, 32, "$\\mathcal{L}_{CE}$ with the given label", ha="center", fontsize=11)
    return drawing


def _arrow(axis: plt.Axes, start: tuple[float, float], end: tuple[float, float], style: str = "->") -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": style, "color": INK, "lw": 1.4})
