"""A model's name and options -> the module; imports the builder's module on demand."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from stl10bench.config import SELF_SUPERVISED, RunConfig, Scalar
from stl10bench.core.errors import UsageError, suggest
from stl10bench.models.methods import method_options
from stl10bench.models.registry import backbone_name, check_name, load_builder

if TYPE_CHECKING:
    from torch import nn

    Builder = Callable[..., nn.Module]

_STORABLE = TypeAdapter(
    dict[str, Scalar | tuple[Scalar, ...] | None], config=ConfigDict(allow_inf_nan=False)
)
_LONGEST = 1000  # entries of a list among a model's options, e.g. of `hidden`


def get_builder(name: str) -> "Builder":
    """The builder of a model; raises UsageError for an unknown name, of timm as well."""
    check_name(name)
    if backbone := backbone_name(name):
        from stl10bench.models.timm_backbone import check_timm_name, timm_model

        check_timm_name(backbone)
        return partial(timm_model, backbone)
    builder = load_builder(name)
    if builder is None:
        raise UsageError(f"the plugin of model {name!r} does not @register a function {name!r}")
    return builder


def model_options(name: str) -> dict[str, Parameter]:
    """The options of a model: its builder's keyword-only parameters.

    Raises UsageError for one without a type or a default.
    """
    try:
        parameters = signature(get_builder(name), eval_str=True).parameters
    except (NameError, SyntaxError) as error:  # annotations that are strings
        raise UsageError(f"model {name!r}: the types of its options: {error}") from error
    options = {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    for key, parameter in options.items():
        if parameter.empty in (parameter.annotation, parameter.default):
            raise UsageError(
                f"option {key} of model {name!r} needs a type and a default, e.g. {key}: int = 1"
            )
    return options


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, as strings or values, in the types of the builder's parameters; defaults added.

    Lists may be written with commas. Raises UsageError for an option that the model does not
    have or a value that does not fit.
    """
    parameters = model_options(name)
    values = {}
    for key, value in options.items():
        if key not in parameters:
            choices = f"it has {', '.join(parameters) or 'no options of its own'}"
            hint = suggest(key, [*parameters, *RunConfig.model_fields], otherwise=choices)
            raise UsageError(f"model {name!r} has no option {key!r}: {hint}")
        if isinstance(value, str) and "tuple" in str(parameters[key].annotation):
            value = [part for part in value.split(",") if part]
        if isinstance(value, list | tuple) and len(value) > _LONGEST:
            raise UsageError(
                f"option {key} of model {name!r}: {len(value)} entries; the limit is {_LONGEST}"
            )
        values[key] = value
    fields: dict[str, Any] = {key: (p.annotation, p.default) for key, p in parameters.items()}
    schema = create_model("Options", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        checked: dict[str, Any] = schema.model_validate(values).model_dump()
        _STORABLE.validate_python(checked)  # defaults too: they stand in the row
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

    Lazy layers have their sizes already. Raises UsageError for an unknown name or option, a size
    that the model cannot take, and whatever a plug-in's builder raises.
    """
    builder, checked = get_builder(name), check_options(name, options)
    from torch import nn

    from stl10bench.models.check import check_state, materialise, named_errors

    with named_errors(f"model {name!r} cannot be built for {image_size} px"):
        model = builder(num_classes, image_size, **checked)
        if not isinstance(model, nn.Module):
            raise UsageError(f"model {name!r} is a {type(model).__name__}, not an nn.Module")
        materialise(model, image_size)
        check_state(name, model)
    return model


def build_run_model(config: RunConfig, num_classes: int, *, bank: int = 0) -> "nn.Module":
    """The model of a run with random weights, on the CPU, under the head of the run's method.

    `bank` is the number of images that a head of neighbours holds. Raises UsageError as
    `build_model` does, and for a method that needs a frozen backbone where there is none.
    """
    model = build_model(config.model, num_classes, config.image_size, config.model_options)
    if config.method == SELF_SUPERVISED:
        from stl10bench.models.projection import with_projection

        outputs = method_options(config).projection
        return with_projection(config.model, model, config.image_size, outputs)
    if config.takes_steps:
        return model
    import torch

    from stl10bench.models.classifier import Classifier
    from stl10bench.models.feature_heads import KnnHead, ProbeHead, SpreadHead
    from stl10bench.models.mlp import Head

    if not (isinstance(model, Classifier) and model.frozen and isinstance(model.head, Head)):
        raise UsageError(
            f"--method {config.method} needs a frozen backbone, but model {config.model!r} has "
            "none: use mobilenetv2, timm:NAME, or --method supervised"
        )
    features, options = model.head.num_features, method_options(config)
    images, labels = torch.zeros(bank, features), torch.zeros(bank, dtype=torch.int64)
    if config.method in ("probe", "pseudo-label"):
        model.head = ProbeHead(features, num_classes, power=options.power)
    elif config.method == "label-spreading":
        spread = torch.zeros(bank, num_classes)
        model.head = SpreadHead(images, spread, options.k, options.temperature)
    else:
        model.head = KnnHead(images, labels, num_classes, options.k, options.temperature)
    return model
