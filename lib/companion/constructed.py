"""Constructed datasets as they are kept: which networks make them, by which recipe, and how close they came."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field

from companion import datasets, records, trained
from companion.paths import made, outputs
from robust_features.construction import MEASURES, Constructed, Construction, construct
from robust_features.files import atomic
from robust_features.hardware import Hardware, Precision
from robust_features.settings import Count, describe, settings

EVERY = "every"


@settings
class Recipe:
    """How a dataset is constructed, and by which member of a group; with `every`, one dataset per member."""

    by: str
    make: Construction
    splits: Annotated[tuple[Literal["train", "validation", "test"], ...], Field(min_length=1)] = ("train", "validation")
    batch_size: Count | None = None


@settings
class Constructions:
    """Datasets that the networks of a group make from one dataset, by name."""

    dataset: str
    networks: str
    sets: Annotated[dict[str, Recipe], Field(min_length=1)]

    def ids(self, id: str, members: Sequence[str] | None = None) -> dict[str, tuple[Recipe, str]]:
        """The datasets' ids, `<id>/<name>` or per member `<id>/<name>/<member>`, with their recipes and who makes them.

        `members` of the group are by default those that are on disk.
        """
        found = {}
        for name, recipe in self.sets.items():
            if recipe.by == EVERY:
                each = records.members(self.networks) if members is None else members
                found |= {f"{id}/{name}/{member}": (recipe, member) for member in each}
            else:
                found[f"{id}/{name}"] = recipe, recipe.by
        return found


def make(
    id: str, entry: Constructions, *, hardware: Hardware, seed: int, report: Callable[[str], None] = print
) -> None:
    """Make the splits of every dataset of an entry and write data/constructed/<its id>/<split>/.

    If the training images are made, the splits that are not come from the dataset they were made from. An interrupted
    run goes on with the batches that are not finished, of finished datasets too: DVC deletes what it had written.
    """
    with ExitStack() as stack:
        for name, (recipe, member) in entry.ids(id).items():
            network = trained.load(f"{entry.networks}/{member}", hardware=hardware)
            images = {split: datasets.load(entry.dataset, split) for split in recipe.splits}
            depends = [*(part.images for part in images.values()), *network.state_dict().values()]
            kept = stack.enter_context(records.unfinished("construction", [describe(recipe), seed], depends))
            parts = {}
            for split, part in images.items():
                once = lambda first, make, kept=kept, split=split: kept(f"{split}-{first}", make)  # noqa: E731
                options = dict(seed=seed, batch_size=recipe.batch_size, once=once, report=report)
                parts[split] = construct(recipe.make, network, part, hardware=hardware, **options)
            _save(name, entry, recipe, member, parts, seed=seed, precision=hardware.precision_of(network))


def load(id: str, split: str) -> Constructed:
    """A made split of data/constructed/<id>/."""
    tensors = records.load(made(f"constructed/{id}/{split}")).tensors
    return Constructed(datasets.load(id, split), **{name: tensors[name] for name in MEASURES})


def distances(sets: Mapping[str, str], split: str) -> pd.DataFrame:
    """One row per made dataset, name → id: mean distances before and after, ratio, L2 moved, percent reached, n."""
    rows = {}
    for name, id in sets.items():
        part = load(id, split)
        before, after, moved = (tensor.mean().item() for tensor in (part.before, part.after, part.l2))
        row = {"distance before": before, "distance after": after, "before / after": before / after, "L2 moved": moved}
        rows[name] = row | {"reached (%)": 100 * part.reached.float().mean().item(), "n": len(part.l2)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _save(
    id: str,
    entry: Constructions,
    recipe: Recipe,
    member: str,
    parts: Mapping[str, Constructed],
    *,
    seed: int,
    precision: Precision,
) -> None:
    """Write data/constructed/<id>/<split>/: what was made, and with made training images the dataset's other splits.

    The card states dataset, network, recipe and precision, their checksums, the share that reached its target, and mean
    distances.
    """
    maker = f"{entry.networks}/{member}"
    card = {
        "dataset": entry.dataset,
        "network": maker,
        "recipe": describe(recipe),
        "seed": seed,
        "precision": precision,
    }
    card["source_sha256"] = records.load(records.folder("model", maker)).card["sha256"]
    with atomic(outputs() / "constructed" / id) as partial:
        for split in ("train", "validation", "test") if "train" in parts else parts:
            base = records.load(datasets.folder(entry.dataset) / split)
            own = {"base_sha256": base.card["sha256"], "classes": base.card["classes"]}
            if split == "validation" and split in parts:
                records.save(partial / trained.TRUE, base.tensors, card | own)
            if split not in parts:
                records.save(partial / split, base.tensors, card | own)
                continue
            part = parts[split]
            means = {name: getattr(part, name).mean().item() for name in ("l2", "before", "after")}
            own |= {"size": len(part.images), "reached": part.reached.float().mean().item(), "mean": means}
            tensors = {"images": part.images.images, "labels": part.images.labels}
            records.save(partial / split, tensors | {name: getattr(part, name) for name in MEASURES}, card | own)
