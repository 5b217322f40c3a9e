"""The program: `nexapod`, or `python -m nexapod`."""

from nexapod.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
