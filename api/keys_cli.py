"""`lensgate keys`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from api.log import configure_logging
from api.settings import load_settings
from api.utc_time import utc_time
from security.settings import SecuritySettings

if TYPE_CHECKING:  # cryptography is slow to load, and most commands do without
    from security.key_rotation import KeyInfo

keys: Final = typer.Typer(no_args_is_help=True, help="The keys that sign tokens.\n\nExample: lensgate keys list")


@keys.command("list")
def keys_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False) -> None:
    """List the keys, oldest first: which one signs, which will, and which only verify what they have signed. Only reads the folder.

    Example: lensgate keys list
    """
    found = _describe(_settings())
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(key) for key in found]))
        return
    for key in found:
        typer.echo(f"{key.kid:26}  {key.algorithm}  {key.state:9}  created {utc_time(key.created_at)}{_next(key)}")


@keys.command("rotate")
def keys_rotate(
    algorithm: Annotated[
        Literal["ES256", "RS256"], typer.Option(help="ES256 is small and fast; RS256 for readers that know no other.")
    ] = "ES256",
    sign_after_s: Annotated[
        float, typer.Option(min=0, max=30 * 86_400, help="Seconds until it signs, where the folder reaches other machines slowly.")
    ] = 0.0,
) -> None:
    """Make a new signing key. Running workers publish it at their next look and sign with it once all of them know it; nothing restarts.

    Example: lensgate keys rotate --algorithm ES256
    """
    from security.key_ring import publication_delay_s
    from security.key_rotation import rotate_keys

    security = _settings()
    folder, is_new = security.keys_dir.absolute(), not security.keys_dir.exists()
    kid = rotate_keys(security.keys_dir, algorithm=algorithm, sign_after_s=sign_after_s, poll_s=security.poll_s)
    made = next(key for key in _describe(security) if key.kid == kid)
    if made.state == "signing":
        # In a folder that is not the service's that would otherwise sound like more than it is.
        where = f"{folder}, which is new, for services that read it there" if is_new else str(folder)
        typer.echo(f"Made the key {kid} ({made.algorithm}) in {where}: it signs from now on.")
        return
    in_s = max(publication_delay_s(security.poll_s), sign_after_s)
    typer.echo(f"Made the key {kid} ({made.algorithm}) in {folder}: published within {security.poll_s:g} s, it signs in {in_s:g} s.")
    typer.echo("The older keys verify what they have signed; `lensgate keys prune` deletes those that no live token needs.")


@keys.command("prune")
def keys_prune() -> None:
    """Delete the retired keys whose last token has expired (a day after their successor began to sign).

    Example: lensgate keys prune
    """
    from security.key_rotation import prune_keys

    security = _settings()
    gone = prune_keys(security.keys_dir, poll_s=security.poll_s, clock_skew_s=security.clock_skew_s, now=time.time())
    for kid in gone:
        typer.echo(f"Deleted the key {kid}.")
    if not gone:
        typer.echo(
            f"Deleted nothing in {security.keys_dir.absolute()}: every key signs, will sign, or may have signed a token that is still good."
        )


def _settings() -> SecuritySettings:
    settings = load_settings()
    # A log line must not stand between the lines of --json.
    configure_logging(settings.log.level, settings.log.format, process="cli", stream=sys.stderr)
    return settings.security


def _describe(security: SecuritySettings) -> list[KeyInfo]:
    from security.key_rotation import describe_keys

    return describe_keys(security.keys_dir, poll_s=security.poll_s, clock_skew_s=security.clock_skew_s, now=time.time())


def _next(key: KeyInfo) -> str:
    if key.state == "published":
        return f"  signs from {utc_time(key.signs_from)}"
    if key.state == "retired" and key.last_token_gone_at is not None:
        return f"  needed until {utc_time(key.last_token_gone_at)}"
    return ""
