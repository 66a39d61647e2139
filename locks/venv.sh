#!/bin/sh
# Makes .venv, with uv and the build backend in it, from the hashed locks/build.txt. Usage: locks/venv.sh PYTHON
set -eu

python=$1
versions="3.11 3.12 3.13 3.14" # those that the locked torch has builds for

fail() {
    echo "$*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "Lensgate needs Python ($versions), and there is no '$python' here."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case " $versions " in
    *" $version "*) ;;
    *) fail "Lensgate needs Python ($versions), and '$python' is $version. Name another one: make demo PYTHON=python3.12" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "'$python' cannot make a virtual environment. On Debian and Ubuntu: apt-get install python$version-venv"

.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || "$python" -m venv --clear .venv
PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r locks/build.txt
