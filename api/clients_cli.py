"""`lensgate clients`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from api.registry_access import with_registry
from api.settings import ConfigurationError, Settings, load_settings
from api.utc_time import utc_time
from security.errors import RegistryMissing

if TYPE_CHECKING:  # the database's library is slow to load, and most commands do without
    from security.client_records import Client, CreatedClient
    from security.clients import ClientRegistry

clients: Final = typer.Typer(
    no_args_is_help=True, help="The client apps that may ask for tokens.\n\nExample: lensgate clients create my-app --scope predict"
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reference = Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id or name.")]


@clients.command("create")
def clients_create(
    name: Annotated[str, typer.Argument(help="What people call it: 1 to 64 printable characters, unique.")],
    scope: Annotated[list[str], typer.Option(help="What it may ask for, one or several (predict,metrics): predict, metrics, introspect.")],
    tier: Annotated[str, typer.Option(help="The rate-limit tier.")] = "standard",
    as_json: AsJson = False,
) -> None:
    """Make a client and print its secret, once: only a hash is kept.

    Example: lensgate clients create my-app --scope predict
    """
    settings = _settings_with(tier)
    # As people write lists: --scope a --scope b, --scope a,b or --scope "a b".
    scopes = " ".join(scope).replace(",", " ").split()
    created = with_registry(lambda registry: registry.create(name, scopes, tier=tier), settings, may_create=True)
    _show_secret(created, as_json, f"Made the client {created.name}.")


@clients.command("list")
def clients_list(as_json: AsJson = False) -> None:
    """List the clients.

    Example: lensgate clients list
    """
    try:
        found = with_registry(lambda registry: registry.list_all())
    except RegistryMissing as missing:  # nothing is listed where nothing is, as scripts expect; but whose folder is it?
        typer.echo(f"lensgate: {missing}", err=True)
        found = []
    if as_json:
        _print_json([_as_json(client) for client in found])
        return
    if not found:
        typer.echo("There are no clients. Make the first one: lensgate clients create my-app --scope predict")
    for client in found:
        state = "disabled" if client.disabled_at else "enabled"
        typer.echo(f"{client.client_id}  {state:8}  {client.tier:10}  {' '.join(client.scopes):24}  {client.name}")


@clients.command("show")
def clients_show(client: Reference, as_json: AsJson = False) -> None:
    """Show one client, without its secret, which nobody knows but itself.

    Example: lensgate clients show my-app
    """

    async def ask(registry: ClientRegistry) -> tuple[Client, int | None]:
        found = await registry.get(client)
        return found, await registry.former_secret_ends_at(found.client_id)

    found, former_secret_ends_at = with_registry(ask)
    if as_json:
        _print_json(_as_json(found))
        return
    shown = _as_json(found)
    shown |= {name: utc_time(shown[name]) for name in ("created_at", "disabled_at") if shown[name] is not None}
    if former_secret_ends_at is not None:
        shown["old secret"] = f"works until {utc_time(former_secret_ends_at)}"
    for key, value in shown.items():
        typer.echo(f"{key:14} {' '.join(value) if isinstance(value, list) else '-' if value is None else value}")


@clients.command("rotate-secret")
def clients_rotate_secret(
    client: Reference,
    overlap_s: Annotated[int, typer.Option(min=0, max=30 * 86_400, help="How long the old secret still works, in seconds.")] = 86_400,
    as_json: AsJson = False,
) -> None:
    """Give a client a new secret and print it, once; the old one works a while longer.

    Example: lensgate clients rotate-secret my-app --overlap-s 3600
    """
    created = with_registry(lambda registry: registry.rotate_secret(client, overlap_s=overlap_s))
    _show_secret(created, as_json, f"Gave {created.name} a new secret; the old one works for {overlap_s} s more.")


@clients.command("set-tier")
def clients_set_tier(client: Reference, tier: Annotated[str, typer.Argument(metavar="TIER", help="The rate-limit tier.")]) -> None:
    """Give a client another tier: its limits hold within LENSGATE_SECURITY__POLL_S, for the tokens that it has, too.

    Example: lensgate clients set-tier my-app standard
    """
    with_registry(lambda registry: registry.set_tier(client, tier), _settings_with(tier))
    typer.echo(f"{client} has the tier {tier}.")


@clients.command("disable")
def clients_disable(client: Reference) -> None:
    """Refuse a client from now on: new tokens at once, live tokens within LENSGATE_SECURITY__POLL_S.

    Example: lensgate clients disable my-app
    """
    with_registry(lambda registry: registry.disable(client))
    typer.echo(f"Disabled {client}.")


@clients.command("enable")
def clients_enable(client: Reference) -> None:
    """Let a disabled client in again.

    Example: lensgate clients enable my-app
    """
    with_registry(lambda registry: registry.enable(client))
    typer.echo(f"Enabled {client}.")


@clients.command("delete")
def clients_delete(client: Reference) -> None:
    """Forget a client and its secrets; its live tokens are refused within LENSGATE_SECURITY__POLL_S.

    Example: lensgate clients delete my-app
    """
    with_registry(lambda registry: registry.delete(client))
    typer.echo(f"Deleted {client}.")


def _settings_with(tier: str) -> Settings:
    settings = load_settings()
    if tier not in settings.security.tiers:
        raise ConfigurationError(f"there is no tier {tier!r} in LENSGATE_SECURITY__TIERS")
    return settings


def _show_secret(created: CreatedClient, as_json: bool, said: str) -> None:
    values = {
        "client_id": created.client_id,
        "client_secret": created.client_secret,
        "name": created.name,
        "scopes": list(created.scopes),
        "tier": created.tier,
    }
    if as_json:
        _print_json(values)
        return
    typer.echo(f"{said} Its secret is shown this once; only a hash is kept.")
    typer.echo(f"  client_id      {created.client_id}")
    typer.echo(f"  client_secret  {created.client_secret}")
    typer.echo(f"  scopes         {' '.join(created.scopes)}")
    typer.echo(f"  tier           {created.tier}")


def _as_json(client: Client) -> dict[str, Any]:
    return {
        "client_id": client.client_id,
        "name": client.name,
        "scopes": list(client.scopes),
        "tier": client.tier,
        "created_at": client.created_at,
        "disabled_at": client.disabled_at,
    }


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
