#!/bin/sh
# Runs the uv of .venv with the package index and the certificates that pip is set up with on this machine, which uv does not read by itself.
# uv's own variables come first where they are set.
set -eu

# (`pip config get` does not find what stands in a file of the whole machine; `list` does.)
pip_setting() { .venv/bin/python -m pip config list | sed -n "s/^global\\.$1='\\(.*\\)'\$/\\1/p"; }

if [ -z "${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-}}" ]; then
    UV_DEFAULT_INDEX=${PIP_INDEX_URL:-$(pip_setting index-url)}
    if [ -n "$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX; else unset UV_DEFAULT_INDEX; fi
fi
if [ -z "${SSL_CERT_FILE:-}" ]; then
    SSL_CERT_FILE=${PIP_CERT:-$(pip_setting cert)}
    if [ -n "$SSL_CERT_FILE" ]; then export SSL_CERT_FILE; else unset SSL_CERT_FILE; fi
fi
exec .venv/bin/uv "$@"
