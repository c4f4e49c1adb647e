"""A model's name and options -> the module; imports the builder's module on demand."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from stl10bench.config import RunConfig
from stl10bench.core.errors import UsageError
from stl10bench.models import registry
from stl10bench.models.registry import TIMM, check_name

if TYPE_CHECKING:
    from torch import nn

    Builder = Callable[..., nn.Module]
_PARTS = 1000  # of a list among a model's options, e.g. layers


def get_builder(name: str) -> "Builder":
    """The builder of a model; raises UsageError as `check_name` does."""
    check_name(name)
    if name.startswith(TIMM):
        from stl10bench.models.timm_backbone import timm_model

        return partial(timm_model, name.removeprefix(TIMM))
    builder = registry.registered(name)
    if builder is None:
        raise UsageError(f"the plugin of model {name!r} does not @register a function {name!r}")
    return builder


def model_options(name: str) -> dict[str, inspect.Parameter]:
    """The options of a model: its builder's keyword-only parameters."""
    parameters = inspect.signature(get_builder(name)).parameters
    return {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, as strings or values, in the types of the builder's parameters; all filled in.

    Lists may be written with commas. Raises UsageError for an option that the model does not
    have or a value that does not fit.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    known = model_options(name)
    for key in given:
        if key not in known:
            near = get_close_matches(key, [*known, *RunConfig.model_fields], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known) or 'none'}"
            raise UsageError(f"model {name!r} has no option {key!r}: {hint}")
    fields: dict[str, Any] = {key: (p.annotation, p.default) for key, p in known.items()}
    schema = create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)
    values = {
        key: _split(value) if "tuple" in str(known[key].annotation) else value
        for key, value in given.items()
    }
    for key, value in values.items():
        if isinstance(value, list | tuple) and len(value) > _PARTS:
            raise UsageError(
                f"option {key} of model {name!r}: {len(value)} parts, at most {_PARTS}"
            )
    try:
        checked: dict[str, Any] = schema.model_validate(values).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"option {first['loc'][0]} = {first['input']!r:.80} of model {name!r}: {first['msg']}"
        ) from None
    return checked


def check_freeze(value: Any) -> bool:
    """The option `freeze` of a backbone, as a boolean or as a word for one."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise UsageError(f"option freeze = {value!r}: must be true or false") from None


def changed_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked options that differ from the builder's defaults: what a config stores."""
    defaults = check_options(name, {})
    checked = check_options(name, given)
    return {key: value for key, value in checked.items() if value != defaults[key]}


def build_model(
    name: str, num_classes: int, image_size: int, given: Mapping[str, Any]
) -> "nn.Module":
    """A model with random weights; raises UsageError for unknown names, options and sizes."""
    return get_builder(name)(num_classes, image_size, **check_options(name, given))


def _split(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value
