"""`python -m uniavgen_core` and `python path/to/uniavgen_core` are the `uniavgen` command."""

import sys
from pathlib import Path

if not __package__:  # started as a folder: the package is what its parent holds
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from uniavgen_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
