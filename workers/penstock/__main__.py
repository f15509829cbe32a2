"""`python -m penstock`: the command line, as the console script `penstock` runs it."""

from penstock.workers.cli import main

if __name__ == "__main__":
    main()
