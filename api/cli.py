"""The command line, `lensgate`. Each command says what it did, and ends with one clear line and a non-zero code when it could not."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from api.children import ChildGaveUp
from api.keys_cli import keys
from api.registry_access import with_registry
from api.settings import ConfigurationError, Settings, effective, load_settings
from api.tokens_cli import tokens
from inference.errors import ModelLoadError
from security.errors import KeysError, RegistryError

if TYPE_CHECKING:  # the database's library is slow to load, and most commands do without
    from security.client_records import Client, CreatedClient

app: Final = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
clients: Final = typer.Typer(no_args_is_help=True, help="The client apps that may ask for tokens.")
weights: Final = typer.Typer(no_args_is_help=True, help="The model's weights.")
config: Final = typer.Typer(no_args_is_help=True, help="The settings.")
db: Final = typer.Typer(no_args_is_help=True, help="The client registry's database.")
app.add_typer(clients, name="clients")
app.add_typer(keys, name="keys")
app.add_typer(tokens, name="tokens")
app.add_typer(weights, name="weights")
app.add_typer(config, name="config")
app.add_typer(db, name="db")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reference = Annotated[str, typer.Argument(metavar="CLIENT", help="The client's id or name.")]


class DemoModel(StrEnum):
    """The models that the demo can show."""

    AUTO = "auto"
    RESNET50 = "resnet50"
    EFFICIENTNET_LITE0 = "efficientnet_lite0"


@app.callback()
def _lensgate() -> None:
    """The guarded gate in front of a PyTorch vision model."""


@app.command()
def serve() -> None:
    """Serve the model. Everything is set in the environment or in .env; see `lensgate config check`.

    SIGTERM: end in order; a second one: at once. SIGHUP: renew the API workers, one after another (a new certificate is read).

    Example: LENSGATE_HTTP__PORT=8080 lensgate serve
    """
    from api.log import configure_logging
    from api.prepare import prepare
    from api.supervisor import Supervisor, bind

    settings = load_settings()
    configure_logging(settings.log.level, settings.log.format, process="supervisor")

    async def run() -> None:
        with bind(settings.http) as listener:
            listening = settings.listening_on(listener.getsockname()[1])
            await prepare(listening)
            await Supervisor(listening, listener).run()

    asyncio.run(run())


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the pictures.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen on loopback; 0 takes a free port.")] = 0,
    model: Annotated[
        DemoModel, typer.Option(help="auto: ResNet-50 when its weights can be had, else the packaged model.")
    ] = DemoModel.AUTO,
) -> None:
    """Start everything in a throw-away folder and classify real photographs through the guarded API.

    Example: lensgate demo --once
    """
    from rich.console import Console

    from api.demo import run_demo
    from api.log import configure_logging

    configure_logging("error", "text")
    run_demo(once=once, port=port, model=model.value, console=Console())


@clients.command("create")
def clients_create(
    name: Annotated[str, typer.Argument(help="What people call it: 1 to 64 printable characters, unique.")],
    scope: Annotated[list[str], typer.Option(help="A scope it may ask for; repeat for more: predict, metrics, introspect.")],
    tier: Annotated[str, typer.Option(help="The rate-limit tier.")] = "standard",
    as_json: AsJson = False,
) -> None:
    """Make a client and print its secret, once: only a hash is kept.

    Example: lensgate clients create my-app --scope predict
    """
    settings = load_settings()
    if tier not in settings.security.tiers:
        raise ConfigurationError(f"there is no tier {tier!r} in LENSGATE_SECURITY__TIERS")
    created = with_registry(lambda registry: registry.create(name, scope, tier=tier), settings)
    _show_secret(created, as_json, f"Made the client {created.name}.")


@clients.command("list")
def clients_list(as_json: AsJson = False) -> None:
    """List the clients.

    Example: lensgate clients list
    """
    found = with_registry(lambda registry: registry.list_all())
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
    found = with_registry(lambda registry: registry.get(client))
    if as_json:
        _print_json(_as_json(found))
        return
    for key, value in _as_json(found).items():
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


@weights.command("fetch")
def weights_fetch() -> None:
    """Download the configured weights into the cache, with a progress bar, and check their hash.

    Example: LENSGATE_INFERENCE__MODEL=resnet50 lensgate weights fetch
    """
    from api.log import configure_logging
    from api.weights_fetch import fetch_weights

    settings = load_settings()
    configure_logging(settings.log.level, settings.log.format, process="cli", stream=sys.stderr)
    typer.echo(f"The weights are at {fetch_weights(settings.inference)}")


@config.command("check")
def config_check() -> None:
    """Check the settings and print the effective ones; secrets are masked.

    Example: lensgate config check
    """
    for name, value in effective(load_settings()).items():
        typer.echo(f"{name}={value}")


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the registry's tables up to date. SQLite is also upgraded by `serve`.

    Example: LENSGATE_SECURITY__DATABASE_URL=postgresql+asyncpg://... lensgate db upgrade
    """
    from security.database import Database

    async def run(settings: Settings) -> None:
        database = Database(settings.security.database_url.get_secret_value())
        try:
            await database.upgrade()
        finally:
            await database.aclose()

    asyncio.run(run(load_settings()))
    typer.echo("The client registry is up to date.")


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


def main() -> None:
    """Run the command line of this process."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ConfigurationError, RegistryError, KeysError, ModelLoadError) as error:
        _fail(str(error))
    except ChildGaveUp as error:
        # One that is configured badly has said why already.
        if error.configured_badly:
            sys.exit(1)
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"lensgate: error: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
