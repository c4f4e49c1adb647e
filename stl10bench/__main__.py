"""`python -m stl10bench`, so that launchers can start it with -m."""

from stl10bench.cli.main import main

if __name__ == "__main__":
    main()
