"""All settings, read once at start from the environment (`LENSGATE_SECTION__NAME`) and from `.env`, then frozen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from api.http_settings import HttpSettings
from api.setting_sources import ENV_FILE, PREFIX, EnvFile, Environment, broken_lines, unknown_names
from inference.settings import InferenceSettings
from security.settings import SecuritySettings


class ConfigurationError(Exception):
    """The settings, or what they name, cannot be used; the message is for the operator and shows no secret."""


class LogSettings(BaseModel):
    """The log, on standard output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least serious level that is written.")
    format: Literal["auto", "json", "text"] = Field(default="auto", description="json, text, or auto: text on a terminal, json elsewhere.")


class Settings(BaseSettings):
    """Everything that can be set. Sections belong to the package that reads them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,  # compose files, Helm charts and `config check` write what is not set as NAME=
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        extra="ignore",  # `unknown_names` is stricter, and knows what Kubernetes injects
        frozen=True,
    )

    http: HttpSettings = HttpSettings()
    security: SecuritySettings = SecuritySettings()
    inference: InferenceSettings = InferenceSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What a program gives, before the environment, before `.env`."""
        env_file = sources["dotenv_settings"]
        assert isinstance(env_file, DotEnvSettingsSource)
        return sources["init_settings"], Environment(settings_cls), EnvFile(settings_cls, env_file=env_file.env_file)

    def listening_on(self, port: int) -> Self:
        """The same settings with the port that was really taken, where PORT was 0."""
        return self.model_copy(update={"http": self.http.model_copy(update={"port": port})})

    def dump(self) -> dict[str, Any]:
        """Everything, secrets too, as JSON values: for handing it to a child process, and for nothing else."""
        values = self.model_dump(mode="json")
        for name in ("database_url", "rate_limit_storage"):
            values["security"][name] = getattr(self.security, name).get_secret_value()
        return values

    @classmethod
    def restore(cls, values: dict[str, Any]) -> Self:
        """The settings that `dump` took. The environment is not read again: a child has what the service was started with."""
        return cls.model_construct(
            http=HttpSettings.model_validate(values["http"]),
            security=SecuritySettings.model_validate(values["security"]),
            inference=InferenceSettings.model_validate(values["inference"]),
            log=LogSettings.model_validate(values["log"]),
        )

    @property
    def issuer(self) -> str:
        """The `iss` of our tokens, and the base of the metadata's URLs."""
        return self.url if self.security.issuer is None else self.security.issuer.rstrip("/")

    @property
    def over_tls(self) -> bool:
        """Whether clients reach us by HTTPS: ours, or, as an https issuer says, that of the proxy before us."""
        return self.http.tls_cert is not None or self.issuer.startswith("https://")

    @property
    def url(self) -> str:
        """Where we listen."""
        host = f"[{self.http.host}]" if ":" in self.http.host else self.http.host
        return f"{'https' if self.http.tls_cert else 'http'}://{host}:{self.http.port}"


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises:
        ConfigurationError: one message that lists every unknown name, every bad value and every broken line, without what is in them.
    """
    try:
        problems = [*broken_lines(), *unknown_names([name for name, _, _ in walk_settings()])]
        settings = Settings()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigurationError(f"the file {ENV_FILE} cannot be read: {reason}") from None
    except ValidationError as error:
        problems += [
            _describe(item["loc"], item["type"], item["msg"])
            for item in error.errors(include_input=False, include_url=False)
            if not _is_told_elsewhere(item["type"], item["loc"])
        ]
    else:
        if not problems:
            return settings
    raise ConfigurationError("the settings are not usable:\n  " + "\n  ".join(sorted(set(problems))))


def walk_settings() -> Iterator[tuple[str, str, str]]:
    """Every setting: its name, its section and its field in there."""
    for section, section_field in Settings.model_fields.items():
        model = section_field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for field in model.model_fields:
            yield f"{PREFIX}{section}__{field}".upper(), section, field


def _is_told_elsewhere(kind: str, location: tuple[int | str, ...]) -> bool:
    # A name that is not there is among the unknown ones; a default that hangs on another setting is missing where that one is bad.
    return (kind == "extra_forbidden" and len(location) == 2) or kind == "default_factory_not_called"


_MESSAGES: Final = {
    "extra_forbidden": "no such setting",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "tuple_type": "must be a JSON list",
}
"""Where pydantic's own words are about Python."""


def _describe(location: tuple[int | str, ...], kind: str, message: str) -> str:
    name = PREFIX + "__".join(str(part).upper() for part in location)
    return f"{name}: {_MESSAGES.get(kind, message.removeprefix('Value error, '))}"
