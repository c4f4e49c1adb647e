"""`stl10bench study run` for launchers: the first of their processes drives, all of them train.

accelerate launch scripts/sweep.py NAME [options]
torchrun --nproc_per_node 2 scripts/sweep.py NAME [options]
"""

import sys

from stl10bench.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["study", "run"]
    main()
