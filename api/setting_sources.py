"""Where the settings are read from: the environment and `.env`. Whatever is wrong there hides nothing else that is wrong."""

from __future__ import annotations

from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

PREFIX: Final = "LENSGATE_"
ENV_FILE: Final = ".env"


class Environment(EnvSettingsSource):
    """The environment variables. What cannot be decoded is handed on as it is, for validation to name it beside all the rest."""

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:  # noqa: ANN401  as its base
        """The settings of a section, by their own names only: a section has no value of its own that could hide them."""
        return super().prepare_field_value(field_name, field, None, value_is_complex)

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ANN401  as its base
        """The value of a JSON text, or the text when it is none."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return value


class EnvFile(Environment, DotEnvSettingsSource):
    """The file `.env`, read like the environment."""
