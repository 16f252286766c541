"""`python -m quire`: the command line."""

from quire.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
