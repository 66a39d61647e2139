"""The command line, `lensgate`. Each command says what it did, and ends with one clear line and a non-zero code when it could not."""

from __future__ import annotations

import asyncio
import signal
import sys
from enum import StrEnum
from typing import Annotated, Final

import typer
from typer.exceptions import TyperException

from api.children import ChildGaveUp
from api.clients_cli import clients
from api.effective_settings import effective
from api.keys_cli import keys
from api.settings import ConfigurationError, Settings, load_settings
from api.tokens_cli import tokens
from inference.errors import ModelLoadError
from security.errors import KeysError, RegistryError

app: Final = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)
weights: Final = typer.Typer(no_args_is_help=True, help="The model's weights.\n\nExample: lensgate weights fetch")
config: Final = typer.Typer(no_args_is_help=True, help="The settings.\n\nExample: lensgate config check")
db: Final = typer.Typer(no_args_is_help=True, help="The client registry's database.\n\nExample: lensgate db upgrade")
app.add_typer(clients, name="clients")
app.add_typer(keys, name="keys")
app.add_typer(tokens, name="tokens")
app.add_typer(weights, name="weights")
app.add_typer(config, name="config")
app.add_typer(db, name="db")


class DemoModel(StrEnum):
    """The models that the demo can show."""

    AUTO = "auto"
    RESNET50 = "resnet50"
    EFFICIENTNET_LITE0 = "efficientnet_lite0"


def _show_version(wanted: bool) -> None:
    if wanted:
        from api.openapi import API_VERSION

        typer.echo(f"lensgate {API_VERSION}")
        raise typer.Exit


@app.callback()
def _lensgate(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")] = False,
) -> None:
    """The guarded gate in front of a PyTorch vision model.

    Example: lensgate demo
    """


@app.command()
def serve() -> None:
    """Serve the model. Everything is set in the environment or in .env; see `lensgate config check`.

    SIGTERM: end in order; a second one: at once. SIGHUP: renew the API workers, one after another (a new certificate is read).

    Example: LENSGATE_HTTP__PORT=8080 lensgate serve
    """
    import structlog

    from api.listener import bind
    from api.log import configure_logging
    from api.prepare import prepare
    from api.supervisor import Supervisor

    settings = load_settings()
    configure_logging(settings.log.level, settings.log.format, process="supervisor")

    async def run() -> None:
        with bind(settings.http) as listener:
            listening = settings.listening_on(listener.getsockname()[1])
            await prepare(listening)
            await Supervisor(listening, listener).run()

    try:
        asyncio.run(run())
    except (ConfigurationError, RegistryError, KeysError, ModelLoadError) as error:
        # Whoever collects the log does not see standard error.
        structlog.get_logger().error("start_failed", reason=str(error))
        raise


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
    """Check the settings and the files that they name, and print the effective ones; secrets are masked.

    Example: lensgate config check
    """
    from api.prepare import check

    settings = load_settings()
    for name, value in effective(settings).items():
        typer.echo(f"{name}={value}")
    check(settings)


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the registry's tables up to date. SQLite is also upgraded by `serve`.

    Example: LENSGATE_SECURITY__DATABASE_URL=postgresql+asyncpg://... lensgate db upgrade
    """
    from security.database import Database

    async def run(settings: Settings) -> str:
        database = Database(settings.security.database_url.get_secret_value())
        try:
            await database.upgrade()
            return database.location
        finally:
            await database.aclose()

    location = asyncio.run(run(load_settings()))
    typer.echo(f"The client registry is up to date: {location}")


def main() -> None:
    """Run the command line of this process."""
    try:
        # Not standalone: typer's own words for a wrong use take four lines.
        sys.exit(app(prog_name="lensgate", standalone_mode=False))
    except TyperException as error:
        _explain_use(error)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ConfigurationError, RegistryError, KeysError, ModelLoadError) as error:
        _fail(str(error))
    except ChildGaveUp as error:
        # One that is configured badly has said why already.
        if error.configured_badly:
            sys.exit(1)
        _fail(str(error))


def _explain_use(error: TyperException) -> None:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if context is not None and message == context.get_help():  # a group alone: typer hands its help over as an error
        typer.echo(message, err=True)
        sys.exit(error.exit_code)
    what = " ".join(message.replace("Value error, ", "").split()).rstrip(".")
    _fail(f"{what}; see {context.command_path if context is not None else 'lensgate'} --help", error.exit_code)


def _fail(message: str, exit_code: int = 1) -> None:
    typer.echo(f"lensgate: error: {message}", err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
