"""`python -m kvnode` is the `kvnode` command."""

from kvnode.cli.main import main

if __name__ == "__main__":
    main()
