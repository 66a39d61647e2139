"""Where the settings are read from: the environment and `.env`. Whatever is wrong there hides nothing else that is wrong."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from dotenv.parser import Binding, parse_stream
from pydantic.fields import FieldInfo
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

PREFIX: Final = "LENSGATE_"
ENV_FILE: Final = ".env"

# Beside a service called lensgate or lensgate-x. No part of such a name is empty, so none of them looks as if it were in a section.
_SERVICE: Final = "LENSGATE(_[A-Z0-9]+)*"
_FROM_KUBERNETES: Final = re.compile(
    f"{_SERVICE}_SERVICE_(HOST|PORT(_[A-Z0-9]+)*)=.*"
    f"|{_SERVICE}_PORT=(tcp|udp|sctp)://.*"
    f"|{_SERVICE}_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*",
    re.DOTALL,
)


logging.getLogger("dotenv").setLevel(logging.ERROR)
"""It warns of a line that it cannot read, and goes on; `broken_lines` stops the start."""


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


def unknown_names(known: Collection[str]) -> Iterator[str]:
    """What is wrong with each name that has our prefix and is no setting, of `.env` and of the environment.

    Args:
        known: the names of the settings, in upper case.

    Raises:
        OSError: there is a `.env` that cannot be read.
        UnicodeDecodeError: it is no UTF-8 text.
    """
    names = {name for name, value in os.environ.items() if not _FROM_KUBERNETES.fullmatch(f"{name}={value}")}
    names |= {binding.key for binding in _env_file() if binding.key}
    for name in {name.upper() for name in names}:
        # Validation looks at what is inside a setting.
        if name.startswith(PREFIX) and not any(name == setting or name.startswith(f"{setting}__") for setting in known):
            right = _nearest(name, known)
            yield f"{name}: no such setting" + (f"; did you mean {right}?" if right else "")


def broken_lines() -> Iterator[str]:
    """What is wrong with each line of `.env` that gives no setting a value; never the line itself, which may hold a secret.

    Raises:
        OSError: there is a `.env` that cannot be read.
        UnicodeDecodeError: it is no UTF-8 text.
    """
    for binding in _env_file():
        if binding.error or (binding.value is None and (binding.key or "").upper().startswith(PREFIX)):
            yield f"{ENV_FILE}, line {binding.original.line}: must be NAME=value"


def _env_file() -> Iterator[Binding]:
    if os.path.lexists(ENV_FILE):  # also a folder or a link to nowhere, which container engines make where a file is missing
        with Path(ENV_FILE).open(encoding="utf-8") as file:
            yield from parse_stream(file)


def _nearest(name: str, known: Collection[str]) -> str | None:
    last_part = name.removeprefix(PREFIX).rpartition("__")[2]
    for setting in known:
        # The right name without its section or in the wrong one, or a section alone.
        if setting.endswith(f"__{last_part}") or setting.startswith(f"{name}__"):
            return setting
    # Without the prefix: all names have it, which would make any two of them alike.
    close = get_close_matches(name.removeprefix(PREFIX), [setting.removeprefix(PREFIX) for setting in known], n=1)
    return PREFIX + close[0] if close else None
