"""The studies that have a name: the nine of the report, and ours.

Each is a model, the recipe that it starts from, what is varied and what the report found; `best`
are the values that it calls the best. They are made for a GPU; on a CPU take fewer values
(`--vary lr=1e-3,1e-4`), epochs or seeds.
"""

from typing import Any

from stl10bench.core.errors import unknown
from stl10bench.studies.study import Study

_RATES = [1e-2, 1e-3, 1e-4, 1e-5]
_BATCHES = [8, 16, 32, 64, 128, 256]
_GRID: dict[str, Any] = {
    "recipe": "report",
    "vary": {"lr": _RATES, "batch_size": _BATCHES},
    "finding": "0.001 with a batch of 128",
    "best": {"lr": "0.001", "batch_size": "128"},
}
_PLAIN: dict[str, Any] = {
    **{"flip": 0.0, "rotation": [0.0, 0.0]},
    **{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
}
_JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
_ROTATION = {"rotation": [0.0, 20.0]}
_FLIP = {"flip": 0.5}

_REPORT: tuple[dict[str, Any], ...] = (
    {
        "name": "logistic-lr",
        "about": "Logistic regression: the learning rate of SGD.",
        "model": "logistic",
        "recipe": "report",
        "vary": {"lr": _RATES},
        "finding": "1e-4 best; the high ones do not converge; 1e-5 slow",
        "best": {"lr": "0.0001"},
    },
    {
        "name": "logistic-batch-size",
        "about": "Logistic regression: the batch size.",
        "model": "logistic",
        "recipe": "report",
        "vary": {"batch_size": [64, 128, 256, 512]},
        "finding": "128 best; 64 and below poor; larger gains nothing",
        "best": {"batch_size": "128"},
    },
    {
        "name": "logistic-optimizer",
        "about": "Logistic regression: Adam or SGD, both at the learning rate 1e-4.",
        "model": "logistic",
        "recipe": "report",
        "vary": {"optimizer": ["adam", "sgd"]},
        "finding": "SGD better",
        "best": {"optimizer": "sgd"},
    },
    {
        **_GRID,
        "name": "mlp-lr-batch-size",
        "about": "Fully connected network: learning rate by batch size.",
        "model": "mlp",
    },
    {
        "name": "mlp-hidden",
        "about": "Fully connected network: three, five or seven hidden layers.",
        "model": "mlp",
        "recipe": "report",
        "vary": {
            "hidden": [
                [512, 256, 128],
                [512, 512, 256, 256, 128],
                [1024, 1024, 512, 512, 256, 256, 128],
            ]
        },
        "finding": "three layers best",
        "best": {"hidden": "512-256-128"},
    },
    {
        **_GRID,
        "name": "cnn-lr-batch-size",
        "about": "CNN: learning rate by batch size.",
        "model": "cnn",
    },
    {
        "name": "cnn-dropout",
        "about": "CNN: dropout between its linear layers.",
        "model": "cnn",
        "recipe": "report",
        "vary": {"dropout": [0.0, 0.1, 0.2, 0.35, 0.5]},
        "finding": "off overfits, 0.5 too strong, 0.2 good",
        "best": {"dropout": "0.2"},
    },
    {
        **_GRID,
        "name": "mobilenetv2-lr-batch-size",
        "about": "MobileNetV2, frozen (the report says not which): learning rate by batch size.",
        "model": "mobilenetv2",
        "settings": {"freeze": True},
    },
    {
        "name": "mobilenetv2-freeze",
        "about": "MobileNetV2: its backbone frozen or trained, both for 12 epochs.",
        "model": "mobilenetv2",
        "recipe": "report",
        "settings": {"epochs": 12},
        "vary": {"backbone": {"frozen": {"freeze": True}, "trained": {"freeze": False}}},
        "finding": "trained is better",
        "best": {"backbone": "trained"},
    },
)

_OURS: tuple[dict[str, Any], ...] = (
    {
        "name": "augmentations",
        "about": "The report's three augmentations: each on its own, all, none.",
        "model": "cnn",
        "recipe": "report",
        "vary": {
            "augmentation": {
                "none": _PLAIN,
                "jitter": _PLAIN | _JITTER,
                "flip": _PLAIN | _FLIP,
                "rotation": _PLAIN | _ROTATION,
                "all": _JITTER | _FLIP | _ROTATION,
            }
        },
    },
    {
        "name": "input-size",
        "about": "What the input size is worth to a frozen MobileNetV2; the images have 96 px.",
        "model": "mobilenetv2",
        "settings": {"freeze": True},
        "vary": {"image_size": [64, 96, 128, 160, 224]},
    },
    {
        "name": "label-efficiency",
        "about": "From 10 to 500 labelled images a class, a fifth of them held out.",
        "model": "mlp",
        "settings": {"val_fraction": 0.2, "batch_size": 32},
        "vary": {
            "network": {
                "mlp": {"model": "mlp"},
                "cnn": {"model": "cnn"},
                "mobilenetv2 frozen": {"model": "mobilenetv2", "freeze": True},
            },
            "labels_per_class": [10, 25, 50, 100, 250, 500],
        },
    },
    {
        "name": "resize-or-crop",
        "about": "How 96 px become the report's 64: it does not say.",
        "model": "logistic",
        "recipe": "report",
        "vary": {"model": ["logistic", "mlp", "cnn"], "input": ["resize", "crop"]},
    },
    {
        "name": "optimizers",
        "about": "Optimizers, each at several learning rates, with a cosine schedule.",
        "model": "mlp",
        "vary": {"optimizer": ["sgd", "adam", "adamw", "lamb"], "lr": [1e-2, 1e-3, 1e-4]},
    },
    {
        "name": "precision",
        "about": "Arithmetic of the layers; fp16 needs a GPU.",
        "model": "mobilenetv2",
        "settings": {"freeze": False},
        "vary": {"precision": ["no", "bf16", "fp16"]},
    },
)

REPORT = tuple(str(given["name"]) for given in _REPORT)
NAMES = (*REPORT, *(str(given["name"]) for given in _OURS))


def get(name: str) -> Study:
    """The study of that name; raises UsageError with the nearest one."""
    for given in (*_REPORT, *_OURS):
        if given["name"] == name:
            return Study.model_validate(given)
    raise unknown("study", name, NAMES, remedy="('stl10bench study list' lists them)")
