"""Runs the command line: `python -m beitkit`."""

from beitkit.cli import main

if __name__ == "__main__":
    main()
