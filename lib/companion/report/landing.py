"""The first page, reports/index.html: what each paper claims, what was found and how certain it is, at every scale."""

import base64
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from companion import paths
from companion.report.contents import LIBRARY, PAPERS, TEMPLATE, TEMPLATES, called, frame, sections
from companion.report.scales import Scale, scales
from companion.report.shown import WORDS, chip, picture, write
from robust_features.settings import Number

if TYPE_CHECKING:
    from companion.claims import Verdict

CITATION = paths.LIBRARY.parent / "CITATION.cff"
TEXT = YAML(typ="safe").load(Path(__file__).with_name("landing.yaml"))
PARTS = {
    "in-short": "In short",
    "papers": "The four papers",
    "how-sure": "How sure is this?",
    "faults": "Faults we found",
    "unseen": "What we could not see",
    "claims": "All claims",
    "figures": "Six figures",
    "reproduce": "Reproduce, use, cite",
    "words": "Glossary",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a paper's main claims: the deciding scale, its verdicts, each in a sentence, how certain it is."""

    scale: Scale
    verdicts: tuple["Verdict", ...]
    found: tuple[str, ...]
    confidence: str


def render() -> Path:
    """Write reports/index.html. Without reports it says so; statements are from the scales that say most about them."""
    from companion.report.gaps import known_faults  # imports pandas, which running a notebook does without

    target, found = paths.REPORTS / "index.html", scales()
    pages = sections()
    homes = {artefact: page.notebook.stem for page in pages for artefact in page.companion["artefacts"]}
    alike = {name for page in pages if "images" in page.companion for name in page.companion["artefacts"]}
    body = TEMPLATES.get_template("landing.html.j2").render(
        text=TEXT,
        parts=PARTS,
        scales=found,
        papers=PAPERS,
        outcomes={paper: outcome(reference["keys"], found) for paper, reference in PAPERS.items()},
        abstract=abstract(found),
        claims=[*judged(found, alike)],
        sureness=sureness(found),
        faults=[each for each in known_faults() if each["artefact"] in homes and not each["unseen"]],
        unseen=[each for each in known_faults() if each["artefact"] in homes and each["unseen"]],
        figures=[shown for each in TEXT["figures"].items() if (shown := figure(*each, found, homes))],
        thumbnails={paper: thumbnail(reference["thumbnail"], found) for paper, reference in PAPERS.items()},
        evidence=lambda scale, artefact: scale.address(homes.get(artefact, ""), artefact),
        first=lambda section: _first(scale.page(section) for scale in found),
        anywhere=lambda artefact: _first(scale.address(homes[artefact], artefact) for scale in found),
        strip=strip,
        called=called,
        effect=effect,
        forest=forest,
        words=WORDS,
        chip=chip,
        whole=whole,
        short=short,
        newest=max((scale.provenance for scale in found), key=lambda each: each.get("started", ""), default={}),
        library=next((f"{scale.place}/{LIBRARY.file}" for scale in found if scale.find(LIBRARY.file)), ""),
        example=(TEMPLATE / "example.txt").read_text("utf-8"),
        citations=citations(YAML(typ="safe").load(CITATION)),
    )
    write(target, frame(body, target, title=TEXT["title"], toc=[*PARTS.items()] if found else []))
    return target


def outcome(claims: Sequence[str], found: Sequence[Scale]) -> Outcome | None:
    """The outcome at the scale that says most, among those that tested one of these claims; None if none did."""
    for scale in found:
        verdicts = tuple(scale.verdicts[id] for id in claims if id in scale.verdicts)
        if any(verdict.comparisons for verdict in verdicts):
            said = tuple(sentence(each) or f"Not run at this scale yet: {each.entry.claim}." for each in verdicts)
            return Outcome(scale, verdicts, said, confidence(verdicts, scale))
    return None


def judged(found: Sequence[Scale], alike: Container[str] = ()) -> Iterator[tuple[Scale, str, "Verdict"]]:
    """Every claim with its verdict at each scale that tested it; once if its artefact is `alike` at all or none did."""
    for id in found[0].verdicts if found else ():
        tested = [scale for scale in found if scale.verdicts[id].comparisons] or found[:1]
        once = found[0].verdicts[id].entry.artefacts[0] in alike
        yield from ((scale, id, scale.verdicts[id]) for scale in (tested[:1] if once else tested))


def sentence(verdict: "Verdict") -> str:
    """What was found, with the effect of the comparison that decides."""
    if not verdict.comparisons:
        return ""
    least = "weakest comparison: " if len(verdict.comparisons) > 1 else ""
    said = (
        verdict.finding
        or f"{'Undecided' if verdict.word == 'open' else verdict.word.capitalize()}: {verdict.entry.claim}"
    )
    return f"{said} ({least}{effect(verdict)})."


def effect(verdict: "Verdict") -> str:
    """The effect of the comparison that decides, and what the intervals allow: +20.3 points [14.8, 25.9].

    Where there is none, or the rule has a limit, the values instead: IB-RAR 0.0 against CE 0.0 %."""
    found = verdict.deciding
    if found is None:
        return ""
    if verdict.entry.rule.form == "above" or found.outcome == "none":
        return f"{found.numbers} %"
    unit = "" if verdict.entry.rule.form == "correlates" else verdict.entry.rule.unit
    digits = 1 if unit else 2
    text = f"{found.effect:+.{digits}f} {unit}".rstrip()
    if not isnan(found.low) and found.low != found.high:
        text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return text.replace("-", "−")


def whole(number: float) -> str:
    """A count as text; a dash where there is none."""
    return "–" if isnan(number) else f"{number:.0f}"


def short(commit: str) -> str:
    """A commit in ten characters, and whether there were changes besides: 0b24b2734b + uncommitted changes."""
    name, changed, rest = commit.partition(" ")
    return f"{name[:10]}{changed}{rest}"


def confidence(verdicts: Sequence["Verdict"], scale: Scale, images: str = "") -> str:
    """How far to trust these verdicts, in a word, and why: the scale's images or others, seeds, n, what is undecided.

    Low on digits, or if most comparisons are open; otherwise high with several seeds and nine in ten comparisons
    decided, moderate with one of the two, low with neither."""
    from companion.claims import EXACT  # imports pandas

    every = [each for verdict in verdicts for each in verdict.comparisons]
    if every and all(verdict.over == EXACT for verdict in verdicts):
        return "High: exact values, computed from a formula."
    seeds = int(min((each.seeds for each in every if not isnan(each.seeds)), default=1))
    undecided = sum(each.outcome == "open" for each in every)
    level = ("Low", "Moderate", "High")[(seeds > 1) + (undecided <= 0.1 * len(every))]
    level = "Low" if scale.toy or undecided > len(every) / 2 else level
    points = [
        whole(each.n) for verdict in verdicts for each in verdict.comparisons if verdict.entry.rule.form == "correlates"
    ]
    counts = _over_images(verdicts)
    of = f"{seeds} trainings of each network" if seeds > 1 else "one training of each network"
    n = "" if seeds > 1 or not counts else f", n = {_range(counts)}"
    n += f", {' and '.join(points)} points" if points else ""
    return f"{level}: {images or scale.images}, {of}{n}, {_decided(undecided, len(every))}."


def _decided(undecided: int, total: int) -> str:
    if 0 < undecided < total:
        return f"{undecided} of {total} comparisons undecided"
    every = {0: "no comparison", 1: "the only comparison", 2: "both comparisons"}.get(total, f"all {total} comparisons")
    return f"{every} {'undecided' if undecided else 'decided'}"


def _over_images(verdicts: Sequence["Verdict"]) -> list[float]:
    """The n of all comparisons that are over test images, not over seeds or points of a correlation, in order."""
    over = [verdict for verdict in verdicts if verdict.entry.rule.form != "correlates"]
    return sorted(
        each.n for verdict in over for each in verdict.comparisons if not isnan(each.n) and not each.seeds > 1
    )


def abstract(found: Sequence[Scale]) -> dict[str, Any] | None:
    """The picture across the page: image, perturbation, new class, and what the index says for each given label."""
    for scale in found:
        rows = scale.rows("kim-given-label")
        if rows.empty:
            continue
        rows = rows[rows["features"] == "R"]
        one = rows[(rows["dataset"] == rows["dataset"].iloc[0]) & (rows["network"] == rows["network"].iloc[0])]
        told = {given: part.iloc[0] for given, part in one.groupby("given")}
        if {"true", "random"} <= {*told}:
            drawn = next(((other, images) for other in found if (images := _pictures(other))), (scale, []))
            return {"scale": scale, "drawn": drawn[0], "images": drawn[1], "told": told, "sentence": _told(told, scale)}
    return None


def _told(told: dict[str, Any], scale: Scale) -> str:
    from companion.report.tables import label

    row, other = told["true"], told["random"]
    said = f"Told the true label, the robust channels of {label(row['network'])} predict it for "
    said += f"{row['value']:.0f} % of the test images of {label(row['dataset'])}; "
    said += f"told a random label, they predict that one for {other['value']:.0f} %."
    word = scale.verdicts["kim-index-records-the-label"].word if "kim-index-records-the-label" in scale.verdicts else ""
    if word == "holds":
        return f"{said} What these channels carry is largely the label that the method was told."
    return f"{said} How much of the label these channels carry varies." if word == "mixed" else said


def _pictures(scale: Scale) -> list[dict[str, str]]:
    """The images of Kim et al.'s Fig. 4 as the page holds them, with the title of each."""
    import pandas as pd

    titles = scale.find("kim-figure-4.csv")
    if titles is None:
        return []
    rows = pd.read_csv(titles, dtype=str, keep_default_na=False)
    files = {row.panel: scale.find(f"kim-figure-4-{row.panel}.png") for row in rows.itertuples()}
    if None in files.values():
        return []
    said = dict(zip(rows["panel"], rows["title"], strict=True))
    return [{"name": name, "said": said[name], "source": _inline(path)} for name, path in files.items() if path]


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _first(addresses: Iterable[str]) -> str:
    """The first that is not empty."""
    return next(filter(None, addresses), "")


def strip(verdicts: Sequence["Verdict"]) -> list[tuple[str, int]]:
    """How many claims have each verdict, in the order of `WORDS`."""
    found = [verdict.word for verdict in verdicts]
    return [(word, found.count(word)) for word in WORDS if word in found]


def sureness(found: Sequence[Scale]) -> list[tuple[str, list[list[str]]]]:
    """What is behind the numbers: for each row, one line or several from every scale."""
    return [(name, [tell(scale) for scale in found]) for name, tell in SURE.items()]


def _images(scale: Scale) -> list[str]:
    from companion.report.tables import label

    return [scale.run.get("title", scale.name), ", ".join(label(name) for name in scale.run.get("datasets", {}))]


def _counts(scale: Scale) -> list[str]:
    counts = _over_images([*scale.verdicts.values()])
    return [f"{_range(counts)} per value" if counts else "–"]


def _seeds(scale: Scale) -> list[str]:
    counts = [len(group.get("seeds", [0])) for group in scale.run.get("networks", {}).values()]
    several = [count for count in counts if count > 1]
    if not counts:
        return ["one per network, unless a table says otherwise"]
    ranges = (("one", len(counts) - len(several)), (_range(sorted(several)) if several else "", len(several)))
    return [f"{said}, in {n} group{'s' if n > 1 else ''} of networks" for said, n in ranges if n]


def _radii(scale: Scale) -> list[str]:
    """The ε of every PGD that the groups make, by norm."""
    radii: dict[str, set[float]] = {}
    for group in scale.run.get("networks", {}).values():
        for name, attack in group.get("attacks", {}).items():
            if name in ("pgd", "l2") and "epsilon" in attack:
                epsilon = TypeAdapter(Number).validate_python(attack["epsilon"])  # 8/255, as settings write it
                radii.setdefault(attack.get("norm", "linf"), set()).add(epsilon)
    names = {"linf": "L∞", "l2": "L2"}
    return [
        f"{names[norm]}: {', '.join(f'{each:.3g}' for each in sorted(values))}" for norm, values in radii.items()
    ] or ["–"]


def _clean(scale: Scale) -> list[str]:
    """Clean accuracy of some rows beside the paper's, which is on another dataset if it has no such value."""
    import pandas as pd

    from companion.report.tables import label

    found = []
    for artefact, where in TEXT["clean"].items():
        rows = scale.rows(artefact)
        if rows.empty or not {*where} <= {*rows}:
            continue
        for name, value in where.items():
            rows = rows[rows[name] == value]
        for row in rows.to_dict("records"):
            network = label(row.get("network") or row.get("classifier") or row.get("trained on") or "")
            theirs = pd.to_numeric(pd.Series([row.get("paper"), row.get("reference")]), errors="coerce").dropna()
            other = "" if row.get("paper") else ", on other images"
            learnt = ", with all training images" if row["dataset"].startswith("cifar10-") else other
            beside = f" (paper: {theirs.iloc[0]:g}{learnt})" if len(theirs) else ""
            found.append(
                f"{artefact.partition('-')[0].capitalize()}: {network}, {label(row['dataset'])}:"
                f" {row['value']:.1f}{beside}"
            )
    return found or ["–"]


def _leave_out(scale: Scale) -> list[str]:
    seeds = {len(group.get("seeds", [0])) for group in scale.run.get("networks", {}).values()} or {1}
    said = ["another training of the same network"] if seeds == {1} else []
    said += ["another training, where a group has one seed"] if 1 in seeds and len(seeds) > 1 else []
    return [
        *said,
        "other images, architectures, ε and training settings",
        "the effect of making many comparisons at once",
    ]


SURE = {
    "Images": _images,
    "Test images (n)": _counts,
    "Trainings (seeds)": _seeds,
    "ε": _radii,
    "Clean accuracy (%)": _clean,
    "What the intervals leave out": _leave_out,
    "Made": lambda scale: [scale.provenance.get("started", "–"), short(scale.provenance.get("commit", ""))],
    "Hardware": lambda scale: [scale.provenance.get("hardware", "–")],
}


def figure(artefact: str, claim: str, found: Sequence[Scale], homes: dict[str, str]) -> dict[str, str] | None:
    """A figure from the scale that says most, its address, and the finding of `claim` as its caption."""
    for scale in found:
        if path := thumbnail(artefact, [scale]):
            verdict = scale.verdicts.get(claim)
            said = sentence(verdict) if verdict else ""
            under = f"{called(artefact)}, {scale.name}"
            return {
                "image": path,
                "page": scale.address(homes.get(artefact, ""), artefact),
                "said": said,
                "under": under,
            }
    return None


def thumbnail(artefact: str, found: Sequence[Scale]) -> str:
    """The address of a figure's picture: SVG, which follows the reader's theme, unless heavy; empty without one."""
    drawn = ((scale.place, picture(scale.folder, artefact)) for scale in found)
    return _first(f"{place}/{path}" for place, path in drawn if path)


def forest(verdict: "Verdict", width: int = 230) -> Markup:
    """The effects of all comparisons as marks, the deciding one's with its interval, from −100 to 100 points."""
    scale = 100 if verdict.entry.rule.form == "correlates" else 1
    at = lambda value: f"{width / 2 + max(-100, min(100, scale * value)) * (width - 12) / 200:.1f}"  # noqa: E731
    marks = [f'<path d="M{width / 2} 2V20" class="zero"/>']
    shown = [each for each in verdict.comparisons if not isnan(each.effect)]
    marks += [f'<circle cx="{at(each.effect)}" cy="11" r="1.6" class="other"/>' for each in shown]
    if (found := verdict.deciding) and not isnan(found.effect):
        if not isnan(found.low):
            marks.append(f'<path d="M{at(found.low)} 11H{at(found.high)}" class="interval"/>')
        marks.append(f'<rect x="{float(at(found.effect)) - 3.5:.1f}" y="7.5" width="7" height="7"/>')
    return Markup(f'<svg class="forest" viewBox="0 0 {width} 22" aria-hidden="true">{"".join(marks)}</svg>')


def citations(cff: dict[str, Any]) -> str:
    """BibTeX of this project and of every work that CITATION.cff refers to."""
    entries = [("misc", "companion", {"title": cff["title"], "author": cff["authors"][0]["name"]})]
    for each in cff["references"]:
        people = " and ".join(f"{person['family-names']}, {person['given-names']}" for person in each["authors"])
        where = each.get("collection-title") or each.get("journal", "")
        kind, key = ("article", "journal") if each["type"] == "article" else ("inproceedings", "booktitle")
        name = f"{each['authors'][0]['family-names'].lower()}{each['year']}"
        about = {"title": each["title"], "author": people, key: where, "year": each["year"], "url": each["url"]}
        entries.append((kind, name, about))
    lines = ("\n".join(f"  {key} = {{{value}}}," for key, value in about.items()) for _, _, about in entries)
    return "\n\n".join(
        f"@{kind}{{{name},\n{inside}\n}}" for (kind, name, _), inside in zip(entries, lines, strict=True)
    )


def _range(numbers: Sequence[float]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"
