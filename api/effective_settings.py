"""The effective settings as text, for people: what is secret is masked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pydantic import BaseModel, SecretStr

from api.settings import Settings, walk_settings


def effective(settings: Settings) -> Mapping[str, str]:
    """Every setting with its value as text; secrets are masked."""
    return {name: _masked(getattr(getattr(settings, section), field)) for name, section, field in walk_settings()}


def _masked(value: object) -> str:
    if isinstance(value, SecretStr):
        return _masked_url(value.get_secret_value())
    if isinstance(value, dict):
        return json.dumps({name: item.model_dump(mode="json") for name, item in value.items()})
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        return json.dumps([item.model_dump(mode="json") for item in value])
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _masked_url(text: str) -> str:
    # Imported here: most commands do without it.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    # An unescaped @, /, ? or # in a password: no telling which part of it is the secret, and readers of URLs differ.
    authority, *rest = re.split("[/?#]", text.partition("://")[2], maxsplit=1)
    if authority and (authority.count("@") > 1 or "@" in "".join(rest)):
        return "***"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return "***"
    in_query = {name: "***" for name in url.query if "password" in name.lower()}
    return url.update_query_dict(in_query).render_as_string(hide_password=True)
