"""``python -m fedkd``."""

import sys

from fedkd.cli import program

if __name__ == "__main__":
    sys.exit(program())
