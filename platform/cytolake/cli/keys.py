"""`cytolake keys`: API keys of the Serve application."""

from __future__ import annotations

from typing import Annotated

import typer

from cytolake.cli.bad_input import exits_on_bad_input

keys = typer.Typer(help="API keys of the Serve application.", no_args_is_help=True)


@keys.command("new")
def keys_new(
    name: Annotated[str, typer.Option(help="Whose key it is, such as lab; limits and logs use it.")],
    scopes: Annotated[str, typer.Option(help="Such as embed,search; all where left out.")] = "",
    expires: Annotated[str, typer.Option(help="Day from which it is refused, such as 2027-01-01.")] = "",
) -> None:
    """Make a key: print it once, for its holder, and the line for the key file (CYTOLAKE_API_KEYS_FILE)."""
    from cytolake.serving.keys import new_key, parse_day

    with exits_on_bad_input():
        wanted = [scope for scope in scopes.split(",") if scope]
        plain, key = new_key(name, wanted, parse_day(expires) if expires else None)
    typer.echo(f"key, shown this once: {plain}", err=True)
    typer.echo(key.line())
