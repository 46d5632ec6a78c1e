"""The commands for secrets: they are read from stdin or a prompt, never from the command line."""

import getpass
import sys

import typer

from innkeeper.cli.options import JsonOption
from innkeeper.cli.screen import print_json, stdout
from innkeeper.client import Innkeeper
from innkeeper.errors import InvalidRequest


def seal(as_json: JsonOption = False) -> None:
    """Seal a secret from stdin, or asked for without echo, and print it for use in a request.

    The last line break of stdin is not part of the secret, unless there are more lines.
    """
    secret = read_secret("Secret: ")
    with Innkeeper() as inn:
        sealed = inn.seal(secret)
    if as_json:
        print_json({"sealed": sealed})
    else:
        # Not by the console, which would break a long line.
        sys.stdout.write(sealed + "\n")


def public_key(as_json: JsonOption = False) -> None:
    """Print the workers' public key; pin it with INNKEEPER_PUBLIC_KEY."""
    with Innkeeper() as inn:
        key = inn.public_key()
    if as_json:
        print_json({"public_key": key})
    else:
        stdout().print(key, soft_wrap=True)


def read_secret(prompt: str) -> bytes:
    """Return a secret from stdin, or from a prompt without echo when stdin is a terminal.

    Raises:
        InvalidRequest: it is empty.
    """
    if sys.stdin.isatty():
        secret = getpass.getpass(prompt, stream=sys.stderr).encode()
    else:
        secret = sys.stdin.buffer.read()
        if secret.count(b"\n") == 1:
            secret = secret.removesuffix(b"\n")
    if not secret:
        raise InvalidRequest(
            "The secret is empty.",
            {"hint": "Pipe it in: innkeeper seal < FILE; or type it when asked."},
        )
    return secret


def seal_for_request(prompt: str) -> str:
    """Read a secret and return it sealed to the workers' key, for a field of a request.

    Raises:
        InvalidRequest: it is empty, or PyNaCl is not installed.
        NotFound: there is no key.
    """
    secret = read_secret(prompt)
    with Innkeeper() as inn:
        return inn.seal(secret)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    panel = "Secrets"
    app.command("seal", epilog="Example: innkeeper seal < password", rich_help_panel=panel)(seal)
    app.command("public-key", epilog="Example: innkeeper public-key", rich_help_panel=panel)(
        public_key
    )
