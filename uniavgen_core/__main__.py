"""`python -m uniavgen_core` is the `uniavgen` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
