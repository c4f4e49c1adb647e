"""Optional packages -> an error that names the extra which brings them; light."""

from importlib.util import find_spec

from stl10bench.errors import UsageError


def require(package: str, *, extra: str, purpose: str) -> None:
    """Raise UsageError, with the command that installs it, when `package` is not installed."""
    if find_spec(package) is None:
        raise UsageError(f"{purpose} needs {package}: pip install 'stl10bench[{extra}]'")
