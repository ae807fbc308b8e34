"""Grids of images, in columns or in rows, and their titles as rows of a CSV."""

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from companion.paths import page_folder
from companion.report.figures import plain
from companion.report.shown import write

WIDEST = 11.0  # inches of a page: of more than eight images in a line each gets less than 1.35


def in_columns(columns: Mapping[str, Sequence], titles: Mapping[str, Sequence[str]] | None = None) -> Figure:
    """One column per name, a row per image (3, H, W), uint8 or in [0, 1]; above each image its title, if any."""
    count, room = min(map(len, columns.values())), 0.2 if titles else 0.0
    drawing, axis = _grid([[images[row] for images in columns.values()] for row in range(count)], room)
    axis.set_xticks([column + 0.5 for column in range(len(columns))], [*map(plain, columns)])
    for column, name in enumerate(columns if titles else ()):
        for row, title in enumerate(titles.get(name, ())[:count]):
            axis.text(column + 0.5, row * (1 + room) - 0.02, plain(title), ha="center", va="bottom", fontsize=8)
    return drawing


def in_rows(rows: Mapping[str, Sequence], names: Sequence[str] = ()) -> Figure:
    """One row per name, a column per image (3, H, W), uint8 or in [0, 1]; above each column its name, if any."""
    count = min(map(len, rows.values()))
    drawing, axis = _grid([images[:count] for images in rows.values()], 0.0)
    axis.set_yticks([row + 0.46 for row in range(len(rows))], [*map(plain, rows)])
    axis.set_xticks([column + 0.5 for column in range(len(names))], [*map(plain, names)])
    return drawing


def pixels(pictures: Mapping[str, Sequence], *, artefact: str) -> None:
    """Write figures/<artefact>-<name>.png of each picture (3, H, W), uint8 or in [0, 1], without anything around it."""
    for name, picture in pictures.items():
        shown = picture.clamp(0, 1) if picture.is_floating_point() else picture
        buffer = io.BytesIO()
        plt.imsave(buffer, shown.permute(1, 2, 0).numpy(), format="png", metadata={"Software": None})
        write(page_folder() / "figures" / f"{artefact}-{name}.png", buffer.getvalue())


def rows(titles: Mapping[str, Sequence[str]], names: Sequence[str]) -> pd.DataFrame:
    """One row per image: its name, the panel, the panel's title."""
    return pd.DataFrame(
        {"image": name, "panel": panel, "title": said[number]}
        for panel, said in titles.items()
        for number, name in enumerate(names)
    )


def _grid(lines: Sequence[Sequence], room: float) -> tuple[Figure, Axes]:
    """Images in unit squares with `room` above each, on one axes: laying out one axes per image would take seconds."""
    wide, high = len(lines[0]), len(lines) * (1 + room)
    side = min(1.35, WIDEST / wide)
    drawing, axis = plt.subplots(figsize=(side * wide, side * high + 0.3))
    for row, line in enumerate(lines):
        for column, image in enumerate(line):
            shown = image.clamp(0, 1) if image.is_floating_point() else image
            top, left = row * (1 + room), column + 0.04
            place = (left, left + 0.92, top + 0.92, top)
            axis.imshow(shown.permute(1, 2, 0).numpy(), extent=place, interpolation="none")
    axis.set(xlim=(0, wide), ylim=(high - room, -room), xticks=[], yticks=[], frame_on=False)
    axis.grid(False)
    axis.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=9)
    return drawing, axis
