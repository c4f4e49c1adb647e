"""What `--help` shows of each command in use."""

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
        "stl10bench benchmark logistic mlp --seeds 3",
    ),
    "table": (
        "stl10bench table --sort test_loss",
        "stl10bench table --columns test_accuracy,test_ece,lr",
    ),
    "compare": (
        "stl10bench compare",
        "stl10bench compare cnn mlp-1a2b3c4d other/cnn-5e6f7a8b",
    ),
    "reproduce": ("stl10bench reproduce logistic-1a2b",),
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
        "stl10bench export m.safetensors --to onnx --output m.onnx",
        "stl10bench export m.safetensors --to hub --output m",
    ),
    "plot": ("stl10bench plot cnn-1a2b mlp-3c4d --output both.svg",),
    "visualize samples": ("stl10bench visualize samples --dataset demo --seed 3",),
    "visualize augmentations": (
        "stl10bench visualize augmentations",
        "stl10bench visualize augmentations logistic --image 12",
    ),
    "visualize predictions": ("stl10bench visualize predictions best.safetensors",),
    "visualize filters": ("stl10bench visualize filters best.safetensors",),
    "visualize gradcam": (
        "stl10bench visualize gradcam best.safetensors",
        "stl10bench visualize gradcam m.safetensors --class cat",
    ),
    "visualize embedding": ("stl10bench visualize embedding m.safetensors --images 2000",),
    "report": (
        "stl10bench report",
        "stl10bench report cnn mlp-3c4d --format markdown",
    ),
    "runs list": ("stl10bench runs list --runs-dir runs",),
    "runs show": ("stl10bench runs show cnn-1a2b",),
    "runs rm": ("stl10bench runs rm cnn-1a2b", "stl10bench runs rm --state old"),
    "study list": ("stl10bench study list", "stl10bench study list --runs-dir runs"),
    "study show": ("stl10bench study show cnn-dropout", "stl10bench study show mine.toml"),
    "study run": (
        "stl10bench study run logistic-lr",
        "stl10bench study run --model cnn --vary dropout=0,0.2",
        "stl10bench study run mlp-hidden --seeds 3 --dry-run",
    ),
    "data download": (
        "stl10bench data download",
        "stl10bench data download --from stl10_binary.tar.gz",
    ),
    "data verify": ("stl10bench data verify --data-dir data",),
    "data audit": (
        "stl10bench data audit",
        "stl10bench data audit --distance 6 --examples 20 --json",
    ),
    "data make-demo": ("stl10bench data make-demo --data-dir data",),
    "data import": ("stl10bench data import photos --data-dir mine",),
    "doctor": ("stl10bench doctor", "stl10bench doctor --dataset demo --json"),
}

SECONDS = {  # at most, on two cores: tests/walk.sh holds these commands to it
    "data make-demo": "Under 60 s.",
    "visualize samples": "Under 20 s.",
    "train": "Under 60 s for logistic with --dataset demo --recipe quick.",
    "plot": "Under 20 s for ten runs.",
    "report": "Under 20 s for fifteen runs.",
    "predict": "Under 20 s for a hundred images.",
    "export": "Under 60 s for the package's own models.",
}


def epilog(command: str) -> str | None:
    """What a command's help ends in."""
    lines = EXAMPLES.get(command)
    shown = [SECONDS[command]] if command in SECONDS else []
    return "\n".join([*shown, *(("Examples:", *lines) if lines else ())]) or None
