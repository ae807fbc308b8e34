"""params.yaml and a file of scales/ → that scale, spelt out.

Mappings merge, a new `kind` replaces its block, lists replace, null removes."""

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from companion import paths
from robust_features.settings import UserError, nearest

NAMED = {"attack": "training", "monitor": "training", "regulariser": "regularisers", "mask": "masks"}  # key: its table
UNBOUNDED = ("carlini-wagner", "feature-gradient")  # kinds that have an ε only if `ball: true` asks for it
# what a scale takes over unchanged
PLAIN = (
    "seed",
    "study",
    "hardware",
    "bottleneck",
    "datasets",
    "sections",
    "fetch",
)
TABLES = ("threat", "attacks", "recipes", "regularisers", "masks")  # what is referred to


class Written(dict[str, Any]):
    """A mapping that knows of each key where the value was written: `scales/quick.yaml, recipes.kim.epochs`."""

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str]):
        super().__init__(values)
        self.places = dict(places)


def written() -> dict[str, Any]:
    """What params.yaml says, and under `scales` each file of scales/, by name. Raises UserError as `read` does."""
    scales = {path.stem: read(path) for path in sorted(paths.SCALES.glob("*.yaml"))}
    return read(paths.PARAMS) | {"scales": scales}


def read(path: Path) -> dict[str, Any]:
    """A YAML file as plain data. Raises UserError if it cannot be read, naming the line that is not YAML."""
    name = os.path.relpath(path, paths.PARAMS.parent)
    try:
        written = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {line}: is not UTF-8; save it as UTF-8 in your editor") from error
    try:
        text = YAML(typ="safe").load(written)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = written.splitlines()[mark.line].strip() if mark else ""
        raise UserError(f"{name} is not valid YAML: {error}: {line}") from error
    if not isinstance(text, dict):
        raise UserError(f"{name}: needs keys and values, found {type(text).__name__}")
    return text


def resolve(text: Mapping[str, Any], scale: str) -> Written:
    """All settings of a scale, from what is `written`: what `Run` validates. Raises UserError for an undefined name."""
    scales = text["scales"]
    if scale not in scales:
        raise UserError(
            f"params.yaml, scale: no scale '{scale}'{nearest(scale, scales)}; there are {', '.join(scales)}"
        )
    papers = _written({key: value for key, value in text.items() if key != "scales"}, "params.yaml,")
    merged = merge(papers, _written(scales[scale], f"scales/{scale}.yaml,"), keep=True)
    for key in merged:
        if key not in (known := (*PLAIN, *TABLES, "scale", "title", "networks", "constructed", "transfers")):
            raise UserError(f"{merged.places[key]}: unknown key{nearest(key, known)}; there are {', '.join(known)}")
    run = Written({key: _whole(merged[key]) for key in PLAIN if key in merged}, merged.places)
    run |= {"scale": scale, "title": merged["title"]}
    for kind, spelt_out in (("networks", _group), ("constructed", _as_written), ("transfers", _transfer)):
        run[kind] = Written({}, merged[kind].places)
        for name in [name for name, entry in merged[kind].items() if entry is not None]:
            try:
                form = _inherit(name, merged[kind], merged[kind].places[name], key="like")
                run[kind][name] = spelt_out(form, merged)
            except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
                said = f"cannot be read ({type(error).__name__}: {error}); compare it with other entries of {kind}"
                raise UserError(f"{merged[kind].places[name]}: {said}") from error
    return run


def merge(first: Any, second: Any, *, keep: bool = False) -> Any:
    """`second` over `first`; with `keep`, its nulls stay, for what the entry inherits has yet to be removed."""
    if not (isinstance(first, Written) and isinstance(second, Written)):
        return second
    if "kind" in second and second["kind"] != first.get("kind"):
        return second
    both = dict(first)
    for key, value in second.items():
        both[key] = merge(first[key], value, keep=keep) if key in first else value
        if value is None and key in first and not keep:
            del both[key]
    return Written(both, {**first.places, **second.places})


def _whole(value: Any) -> Any:
    """`value` without its nulls."""
    if not isinstance(value, Written):
        return value
    return Written({key: _whole(part) for key, part in value.items() if part is not None}, value.places)


def place_of(run: Written, location: tuple[Any, ...]) -> str:
    """Where what is at `location` of the resolved run was written, as far as can be told."""
    node, place = run, f"params.yaml, {'.'.join(map(str, location))}"
    for depth, key in enumerate(location, start=1):
        if not isinstance(node, Written) or key not in node.places:
            break
        place = ".".join([node.places[key], *map(str, location[depth:])])
        node = node.get(key)
    return place


def _written(value: Any, place: str) -> Any:
    """The parsed YAML with places, and names where tables are referred to as {from: name}."""
    if not isinstance(value, Mapping):
        return value
    places = {key: f"{place}{' ' if place.endswith(',') else '.'}{key}" for key in value}
    inner = {key: _written(_named(key, part), places[key]) for key, part in value.items()}
    return Written(inner, places)


def _named(key: str, value: Any) -> Any:
    return {"from": value} if key.rpartition(".")[2] in NAMED and isinstance(value, str) else value


def _inherit(name: str, table: Mapping[str, Any], place: str, key: str = "from") -> Written:
    """An entry of a table with what it takes from another entry."""
    if table.get(name) is None:
        known = [name for name, entry in table.items() if entry is not None]
        raise UserError(f"{place}: no '{name}'{nearest(name, known)}; there are {', '.join(known)}")
    return _from(table[name], table, key)


def _from(entry: Written, table: Mapping[str, Any], key: str = "from") -> Written:
    if key not in entry:
        return entry
    other = _inherit(entry[key], table, entry.places[key], key)
    return merge(other, Written({k: v for k, v in entry.items() if k != key}, entry.places))


def _group(form: Written, text: Written) -> Written:
    """A group with the training of every member spelt out, and what its stage reads."""
    if "recipe" not in form:
        known = [name for name, other in text["networks"].items() if other and ("recipe" in other or "like" in other)]
        place = next(iter(form.places.values()), "params.yaml, networks").rpartition(".")[0]
        raise UserError(f"{place}: needs `recipe`, or `like` and one of {', '.join(known)}")
    recipe = _whole(_inherit(form["recipe"], text["recipes"], form.places["recipe"]))
    base = merge(recipe, form.get("base", Written({}, {})))
    written = form.get("members", Written({}, {}))
    members = {name: merge(base, changes) for name, changes in written.items() if changes is not None}
    places = dict(written.places)
    for path, values in form.get("each", {}).items():
        places |= values.places
        for name, value in _whole(values).items():
            members[name] = merge(members.get(name, base), _nested(path, value, values.places[name]))
    spelt = {name: _member(member, text) for name, member in members.items()}
    sources = {member["dataset"] for member in spelt.values()}
    spent = ("recipe", "base", "members", "each", "attacks")
    group = {key: value for key, value in form.items() if key not in spent and value is not None}
    group |= {"members": Written(spelt, places)}
    group |= {"attacks": _attacks(form, text, min(sources)), "reads": _reads(sources, form)}
    return Written(group, {"members": form.places.get("each", form.places["recipe"]), **form.places})


def _reads(sources: set[str], form: Written) -> str:
    """The folder under data/ that a group depends on: that of a dataset, or of the sets constructed together."""
    folders = {f"constructed/{_entry(name)}" if "/" in name else f"datasets/{name}" for name in sources}
    if len(folders) != 1:
        where = form.places.get("base", form.places["recipe"])
        raise UserError(f"{where}: the members of a group read one dataset, found {', '.join(sorted(folders))}")
    return folders.pop()


def _member(member: Written, text: Written) -> Written:
    """One training, with its attacks, regulariser and mask spelt out."""
    found = Written({key: value for key, value in member.items() if value is not None}, member.places)
    for key in ("regulariser", "mask"):
        if key in found:
            found[key] = _from(found[key], text[NAMED[key]])
    if "attack" in found["objective"]:
        attack = _attack(found["objective"]["attack"], text, "training", member["dataset"])
        found["objective"] = Written({**found["objective"], "attack": attack}, found["objective"].places)
    if "monitor" in found:
        found["monitor"] = _attack(found["monitor"], text, "training", member["dataset"])
    return found


def _attacks(form: Written, text: Written, dataset: str) -> Written:
    """The attacks of `{table, names, change}` by name; the whole table if no names are given."""
    chosen = form.get("attacks") or Written({}, {})
    if "table" not in chosen:
        return Written({}, {})
    if chosen["table"] not in text["attacks"]:
        near = nearest(chosen["table"], text["attacks"])
        raise UserError(f"{chosen.places['table']}: no table of attacks '{chosen['table']}'{near}")
    table = merge(text["attacks"][chosen["table"]], chosen.get("change", Written({}, {})))
    changed = Written({**text, "attacks": {**text["attacks"], chosen["table"]: table}}, text.places)
    names = chosen.get("names") or list(_whole(table))
    reference = {name: Written({"from": name}, {"from": chosen.places["table"]}) for name in names}
    found = {name: _attack(each, changed, chosen["table"], dataset) for name, each in reference.items()}
    return Written(found, table.places)


def _attack(attack: Written, text: Written, table: str, dataset: str) -> Written:
    """An attack with its ε, from `threat` if it has none of its own, and its step in pixels."""
    found = dict(whole := _whole(_from(attack, text["attacks"][table])))
    step, share = found.pop("step", None), found.pop("share", None)
    ball = found.pop("ball", found.get("kind") not in UNBOUNDED)
    if found.get("kind") == "adaptive":
        found["pgd"] = _attack(found["pgd"], text, table, dataset)
    elif ball and "epsilon" not in found:
        epsilon = _threat(text, dataset, found.get("norm", "linf"), whole)
        found["epsilon"] = epsilon if share is None else _times(share, epsilon)
    if step is not None and "step_size" not in found:
        found["step_size"] = _times(step, found["epsilon"])
    places = {"epsilon": _threat_at(text, dataset)[1], "step_size": whole.places.get("step", table), **whole.places}
    return Written(found, places)


def _threat(text: Written, dataset: str, norm: str, attack: Written) -> Any:
    known, place = _threat_at(text, dataset)
    if norm not in known:
        where = next(iter(attack.places.values()), "attacks")
        raise UserError(f"{place}: no {norm}, the ε of the attack at {where}")
    return known[norm]


def _threat_at(text: Written, dataset: str) -> tuple[Mapping[str, Any], str]:
    """The entry of `threat` for a dataset, or for what it is constructed from, and where that is or would be written."""
    name = text["constructed"][_entry(dataset)]["dataset"] if "/" in dataset else dataset
    return text["threat"].get(name, {}), text["threat"].places.get(name, f"params.yaml, threat.{name}")


def _as_written(form: Written, text: Written) -> Written:
    return _whole(form)


def _transfer(form: Written, text: Written) -> Written:
    return Written({**form, "attacks": _attacks(form, text, form["dataset"])}, form.places)


def _entry(dataset: str) -> str:
    """The entry of `constructed` that a set belongs to: ilyas/main for ilyas/main/random."""
    return "/".join(dataset.split("/")[:2])


def _nested(path: str, value: Any, place: str) -> Written:
    """{"a": {"b": value}} for "a.b"."""
    first, _, rest = path.partition(".")
    inner = _nested(rest, value, place) if rest else _written(_named(first, value), place)
    return Written({first: inner}, {first: place})


def _times(factor: Any, length: Any) -> float:
    """A multiple of an ε; both may be written as fractions."""
    return round(_number(factor) * _number(length), 12)  # 0.23 of 0.2 is 0.046


def _number(written: Any) -> float:
    return float(Fraction(written)) if isinstance(written, str) else written
