"""`python -m ingester` is the `ingester` command of the same interpreter."""

from ingester.cli import main

if __name__ == "__main__":
    main()
