"""`python -m quire.cli`, the same as `quire`."""

from quire.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
