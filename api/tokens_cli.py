"""`lensgate tokens`."""

from __future__ import annotations

import re
import time
from typing import Annotated, Final

import typer

from api.registry_access import with_registry
from api.settings import load_settings
from security.errors import RegistryError

tokens: Final = typer.Typer(
    no_args_is_help=True, help="Access tokens that are out there.\n\nExample: lensgate tokens revoke 7Jz0yVw2sQk3cT1xRb9uAg"
)

_JWT: Final = re.compile(r"eyJ[\w-]*\.[\w-]+\.[\w-]*")
"""RFC 7519: three parts in base64url, of which the first begins with `{"`. No id of ours has a point in it."""
_BY_OPERATOR: Final = "operator"
"""Stands for the client of a revoked token: nobody keeps which token went to whom."""


# One id in 64 begins with a hyphen, and whoever copies it out of the log must not be told that there is no such option; nor shown the help,
# because there is an h in it.
@tokens.command("revoke", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
def tokens_revoke(
    jti: Annotated[str, typer.Argument(metavar="JTI", help="The token's id: its claim `jti`, in the log as token_id.")],
) -> None:
    """Refuse one token, whoever has it, within LENSGATE_SECURITY__POLL_S. To refuse all of a client's: lensgate clients disable.

    Example: lensgate tokens revoke 7Jz0yVw2sQk3cT1xRb9uAg
    """
    if _JWT.fullmatch(jti):
        raise RegistryError("that is a whole token; revoke it by its id, which is its claim `jti`, in the log token_id")
    from security.tokens import MAX_TOKEN_LIFETIME_S

    settings = load_settings()
    # Its `exp` is not known here; no token lives longer than this.
    security = settings.security
    foreign = [one.max_token_lifetime_s + security.clock_skew_s for one in security.trusted_issuers]
    expires_at = int(time.time()) + max([MAX_TOKEN_LIFETIME_S, *foreign])
    with_registry(lambda registry: registry.revoke(jti, _BY_OPERATOR, expires_at), settings)
    typer.echo(f"Revoked the token {jti}: every worker refuses it within {security.poll_s:g} s.")
