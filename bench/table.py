"""All rows of the speed and memory table, beside real etcd. `make bench` runs this.

    python -m bench.table                                  everything, 1 M keys, 5 rounds
    python -m bench.table --row single --keys 100000 --rounds 3
    python -m bench.table --only etcd                      one side, no ratios
"""

from __future__ import annotations

import argparse

from bench import bulk, common, door, restart, single, tails

QUESTIONS = {"bulk": bulk.rows, "single": single.rows, "restart": restart.rows,
             "tails": tails.rows, "door": door.rows, "large": door.large_rows}


def main() -> None:
    """Prints the table row by row, so that a broken question costs only itself."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", action="append", choices=QUESTIONS, help="only these questions")
    args = common.options("", parser)
    common.print_header(args)
    failed = []
    for name in args.row or QUESTIONS:
        try:
            common.print_rows(args, QUESTIONS[name](args))
        except Exception as error:
            common.progress(f"{name}: {type(error).__name__}: {error}")
            failed.append(name)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
