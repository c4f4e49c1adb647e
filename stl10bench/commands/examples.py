"""What `--help` shows of each command in use; light."""

EXAMPLES = {  # at most 58 characters a line, so that they stay whole on a narrow terminal
    "train": (
        "stl10bench train mlp --dataset demo --recipe quick",
        "stl10bench train cnn --epochs 5",
        "stl10bench train mobilenetv2 --no-freeze",
    ),
    "evaluate": ("stl10bench evaluate runs/RUN/best.safetensors",),
    "benchmark": (
        "stl10bench benchmark --all",
        "stl10bench benchmark cnn timm:resnet18 --epochs 10",
    ),
    "table": ("stl10bench table", "stl10bench table --format markdown"),
    "models": ("stl10bench models", "stl10bench models --json"),
    "describe": (
        "stl10bench describe cnn",
        "stl10bench describe timm:resnet18 --image-size 96",
    ),
    "predict": (
        "stl10bench predict runs/RUN/best.safetensors cat.jpg",
        "stl10bench predict model.safetensors photos --format csv",
    ),
    "export": (
        "stl10bench export best.safetensors --to onnx --output m.onnx",
        "stl10bench export best.safetensors --to hub --output m",
    ),
    "data download": (
        "stl10bench data download",
        "stl10bench data download --from stl10_binary.tar.gz",
    ),
    "data verify": ("stl10bench data verify --data-dir data",),
    "data make-demo": ("stl10bench data make-demo --data-dir data/demo",),
    "data import": ("stl10bench data import photos --data-dir mine",),
}


def epilog(command: str) -> str | None:
    """What a command's help ends in."""
    lines = EXAMPLES.get(command)
    return "\n".join(("Examples:", *lines)) if lines else None
