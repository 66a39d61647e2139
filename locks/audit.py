#!/usr/bin/env python3
"""Ask the package index for known vulnerabilities of everything that is locked; fail on one that no waiver names.

Where the index cannot be reached, or knows no vulnerabilities, that is said in one line and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).resolve().parent
UNREACHABLE = ("ConnectionError", "Connection refused", "Could not connect", "Failed to resolve", "Max retries exceeded", "timed out")


class AuditError(Exception):
    """pip-audit gave no report, for a reason other than the network."""


def report() -> dict[str, Any] | None:
    """Run pip-audit on the largest lock and return its report, or None where the index could not be reached."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "-r", str(LOCKS / "check.txt")]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if output.is_file() and output.stat().st_size:
            found: dict[str, Any] = json.loads(output.read_text())
            return found
    if any(sign in done.stderr for sign in UNREACHABLE):
        return None
    raise AuditError(done.stderr.strip() or f"pip-audit exited with {done.returncode} and said nothing")


def judge(found: dict[str, Any] | None, waivers: list[dict[str, str]]) -> tuple[list[str], bool]:
    """Return the lines to print and whether the locked packages pass.

    Args:
        found: pip-audit's JSON report; None where there is none.
        waivers: each with an `id` (a vulnerability's own or an alias), a `package` and a `reason`.
    """
    dependencies = [] if found is None else found["dependencies"]
    audited = [each for each in dependencies if "vulns" in each]
    if not audited:
        return ["audit: skipped, no source of known vulnerabilities was reachable"], True

    lines = [f"audit: not known to the index: {each['name']}" for each in dependencies if "vulns" not in each]
    unused = {(waiver["package"], waiver["id"]) for waiver in waivers}
    passed = True
    for package in audited:
        for vulnerability in package["vulns"]:
            names = {(package["name"], name) for name in (vulnerability["id"], *vulnerability.get("aliases", ()))}
            waived = names & {(waiver["package"], waiver["id"]) for waiver in waivers}
            unused -= waived
            if not waived:
                passed = False
                fixes = ", ".join(vulnerability["fix_versions"]) or "no release"
                lines.append(f"audit: {package['name']} {package['version']}: {vulnerability['id']}, fixed by {fixes}")
    lines += [f"audit: the waiver of {name} for {package} matches nothing any more" for package, name in sorted(unused)]
    lines.append(f"audit: {len(audited)} packages, {len(waivers) - len(unused)} waivers used, {'passed' if passed else 'FAILED'}")
    return lines, passed


def main() -> int:
    """Print the verdict; the exit status is 1 where a vulnerability is neither fixed nor waived."""
    waivers = tomllib.loads((LOCKS / "audit-waivers.toml").read_text())["waiver"]
    lines, passed = judge(report(), waivers)
    print(*lines, sep="\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
