"""The terminal command ``innkeeper``."""

import sys


def main() -> None:
    """Run the command line of this process and end it with the exit code of the outcome."""
    try:
        from innkeeper.cli.app import run
    except ModuleNotFoundError as missing:
        if missing.name not in {"typer", "rich"}:
            raise
        sys.exit("The command needs two more libraries: pip install 'innkeeper[cli]'")
    sys.exit(run(sys.argv[1:]))
