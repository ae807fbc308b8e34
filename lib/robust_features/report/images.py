"""Grids of images with a title each, and the titles as rows."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure


def grid(columns: Mapping[str, Sequence], titles: Mapping[str, Sequence[str]]) -> Figure:
    """One column a name, one row an image (3, H, W) in [0, 1]; above each image its title."""
    count = len(next(iter(columns.values())))
    drawing, axes = plt.subplots(count, len(columns), figsize=(1.45 * len(columns), 1.75 * count), squeeze=False)
    for line, (name, images) in zip(axes.T, columns.items(), strict=True):
        for axis, image, title in zip(line, images, titles[name], strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set_axis_off()
            axis.set_title(title, fontsize=9)
        line[0].set_title(f"{name}\n{titles[name][0]}", fontsize=9)
    return drawing


def rows(titles: Mapping[str, Sequence[str]], names: Sequence[str]) -> pd.DataFrame:
    """One row an image: its name, the panel, what the panel is titled with."""
    return pd.DataFrame(
        {"image": name, "panel": panel, "title": said[number]}
        for panel, said in titles.items()
        for number, name in enumerate(names)
    )
