#!/bin/sh
# Runs the uv of .venv with the package index and the certificates that pip is set up with on this machine, which uv does not read by itself.
# uv's own variables come first where they are set.
set -eu

pip_setting() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true; }

if [ -z "${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-}}" ]; then
    UV_DEFAULT_INDEX=${PIP_INDEX_URL:-$(pip_setting index-url)}
    if [ -n "$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX; else unset UV_DEFAULT_INDEX; fi
fi
if [ -z "${SSL_CERT_FILE:-}" ]; then
    SSL_CERT_FILE=${PIP_CERT:-$(pip_setting cert)}
    if [ -n "$SSL_CERT_FILE" ]; then export SSL_CERT_FILE; else unset SSL_CERT_FILE; fi
fi
exec .venv/bin/uv "$@"
