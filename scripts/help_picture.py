"""Draw what a command prints, as a terminal of 80 columns shows it: an SVG.

python scripts/help_picture.py docs/assets/help.svg stl10bench train --help
"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> None:
    """Run the words after the first, and write what they print to the file that it names."""
    path, *words = sys.argv[1:]
    environment = {**os.environ, "COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    printed = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True).stdout
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(Text.from_ansi(printed.decode().strip("\n")))
    picture = console.export_svg(title=" ".join(words))
    # Its fonts would come from a network: the reader's own will do.
    Path(path).write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    main()
