"""The settings object is the schema: what Python constructs, params.yaml validates against and the report prints."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import fields
from pprint import pformat
from typing import Annotated, Any, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs


class UserError(Exception):
    """An error whose message is for the user: what is wrong, in which file or parameter, and what to do."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type) -> Any:
    """Make `cls` a frozen, keyword-only dataclass that checks types and refuses unknown keys, proposing the nearest.

    >>> from robust_features.attacks import PGD
    >>> PGD(epsilon="51/255", step_size=0.1).epsilon
    0.2
    """
    cls._known_keys = model_validator(mode="before")(classmethod(_known_keys))
    cls._repr_pretty_ = _repr_pretty
    return dataclass(cls, frozen=True, kw_only=True, config=ConfigDict(validate_default=True, allow_inf_nan=False))


def _repr_pretty(self: Any, printer: Any, cycle: bool) -> None:
    """What a notebook shows: IPython's printer does not wrap dataclasses."""
    printer.text(pformat(self, width=100))


def _known_keys(cls: type, data: Any) -> Any:
    given = data.kwargs or {} if isinstance(data, ArgsKwargs) else data if isinstance(data, dict) else {}
    allowed = [field.name for field in fields(cls)]
    for key in given:
        if key not in allowed:
            raise ValueError(f"unknown key '{key}'{nearest(key, allowed)}; allowed are {', '.join(allowed)}")
    return data


def describe(value: Any) -> dict[str, Any]:
    """A settings object as plain data, as cards keep it."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean …?` when one of the allowed words begins so, or is close, else nothing.

    >>> nearest("betta", ["beta", "steps"]), nearest("eps", ["steps", "epsilon"])
    ("; did you mean 'beta'?", "; did you mean 'epsilon'?")
    """
    words = [*allowed]
    longer = sorted((each for each in words if len(str(word)) > 2 and each.startswith(str(word))), key=len)
    close = longer or difflib.get_close_matches(str(word), words, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _number(value: object) -> object:
    """What a float is read from: "8/255" and numbers in quotes too, but no boolean, which Python takes for 0 or 1."""
    if not isinstance(value, str):
        return no_boolean(value)
    try:
        numerator, *denominators = (float(part) for part in value.split("/"))
        if not all(map(math.isfinite, [numerator, *denominators])):
            raise ValueError
        return numerator / math.prod(denominators)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"'{value}' is no number; write it like 0.03, 1.0e-3 or 8/255") from None


def no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    return value


# What the fields of settings are made of: finite, and no booleans
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Pixels = NonNegative  # a distance between images in [0, 1]
Whole = Annotated[int, BeforeValidator(no_boolean), Field(ge=0)]
Count = Annotated[int, BeforeValidator(no_boolean), Field(ge=1)]
Pair = Annotated[int, BeforeValidator(no_boolean), Field(ge=2)]  # two or more
Depth = Annotated[Count, Field(le=1001)]  # He et al. 2016b's deepest
Width = Annotated[Number, Field(ge=1 / 16, le=100)]  # of a published network; with less, no channels are left
Deviation = Annotated[Share, Field(gt=0)]  # of pixels
Seed = Annotated[int, BeforeValidator(no_boolean), Field(ge=0, lt=2**32)]  # NumPy takes no larger one
