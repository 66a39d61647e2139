"""The port that the API workers share."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from api.http_settings import HttpSettings
from api.settings import ConfigurationError

BACKLOG: Final = 2048
"""How many connections the kernel keeps that no worker has taken yet."""


def bind(http: HttpSettings, *, port_name: str = "LENSGATE_HTTP__PORT") -> socket.socket:
    """Take the port, before anything is started, so that a taken one is one clear line and nothing half-started.

    Args:
        http: the settings.
        port_name: what people set the port by.

    Raises:
        ConfigurationError: the address does not exist, is taken, or needs privileges.
    """
    where = f"{http.host} port {http.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {where}: no such address") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(http.host != "::"))
        listener.bind(address)
        # From now on callers wait in the backlog for the first worker, instead of being refused.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(f"cannot listen on {where}: it is taken by another program ({port_name})") from error
        raise ConfigurationError(f"cannot listen on {where}: {os.strerror(error.errno or 0).lower()}") from error
    listener.set_inheritable(True)
    return listener
