"""Run a soak, print what it has shown, and exit with 1 when a promise was broken: `make soak`."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from pathlib import Path

import structlog
import uvloop

from soak.report import render
from soak.run import soak


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, help="of all that is drawn; a new one unless it is given")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="the service's setting COMPILE")
    parser.add_argument("--faults", default="", help="only these, in this order, divided by semicolons")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    only = [name.strip() for name in options.faults.split(";") if name.strip()]
    # What operators change is logged; here that would be every client that is made.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="lensgate-soak-") as folder:
        outcome = uvloop.run(soak(Path(folder), seconds=options.minutes * 60, seed=seed, compile_model=options.compile, only=only))
    print(render(outcome))
    for text in outcome.broken:
        print(f"BROKEN: {text}")
    sys.exit(1 if outcome.broken else 0)


if __name__ == "__main__":
    main()
