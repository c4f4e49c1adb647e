"""A model's name and options -> the module; imports the builder's module on demand."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from stl10bench.config import RunConfig
from stl10bench.core.errors import UsageError, suggest
from stl10bench.models.registry import backbone_name, check_name, load_builder

if TYPE_CHECKING:
    from torch import nn

    Builder = Callable[..., nn.Module]

_LONGEST = 1000  # entries of a list among a model's options, e.g. of `hidden`


def get_builder(name: str) -> "Builder":
    """The builder of a model; raises UsageError as `check_name` does."""
    check_name(name)
    if backbone := backbone_name(name):
        from stl10bench.models.timm_backbone import timm_model

        return partial(timm_model, backbone)
    builder = load_builder(name)
    if builder is None:
        raise UsageError(f"the plugin of model {name!r} does not @register a function {name!r}")
    return builder


def model_options(name: str) -> dict[str, Parameter]:
    """The options of a model: its builder's keyword-only parameters."""
    parameters = signature(get_builder(name)).parameters
    return {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, as strings or values, in the types of the builder's parameters; defaults added.

    Lists may be written with commas. Raises UsageError for an option that the model does not
    have or a value that does not fit.
    """
    parameters = model_options(name)
    values = {}
    for key, value in options.items():
        if key not in parameters:
            choices = f"it has: {', '.join(parameters) or 'none'}"
            hint = suggest(key, [*parameters, *RunConfig.model_fields], otherwise=choices)
            raise UsageError(f"model {name!r} has no option {key!r}: {hint}")
        if isinstance(value, str) and "tuple" in str(parameters[key].annotation):
            value = [part for part in value.split(",") if part]
        if isinstance(value, list | tuple) and len(value) > _LONGEST:
            raise UsageError(f"option {key} of {name!r}: {len(value)} entries, at most {_LONGEST}")
        values[key] = value
    fields: dict[str, Any] = {key: (p.annotation, p.default) for key, p in parameters.items()}
    schema = create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        checked: dict[str, Any] = schema.model_validate(values).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"option {first['loc'][0]} = {first['input']!r:.80} of model {name!r}: {first['msg']}"
        ) from None
    return checked


def check_freeze(value: Any) -> bool:
    """The option `freeze` of a backbone, a boolean or a word for one. Raises UsageError.

    Apart from `check_options`, for it is needed before the builder: timm takes seconds to import.
    """
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise UsageError(f"option freeze = {value!r}: must be true or false") from None


def changed_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The checked options that differ from the builder's defaults: what a config stores."""
    defaults = check_options(name, {})
    checked = check_options(name, options)
    return {key: value for key, value in checked.items() if value != defaults[key]}


def build_model(
    name: str, num_classes: int, image_size: int, options: Mapping[str, Any]
) -> "nn.Module":
    """A model with random weights, on the CPU: float images (N, 3, S, S) -> logits (N, C).

    Raises UsageError for an unknown name or option, and for a size that the model cannot take.
    """
    return get_builder(name)(num_classes, image_size, **check_options(name, options))
