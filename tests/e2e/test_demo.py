"""What a newcomer sees first."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from inference.cores import usable_cores
from support.service import Service

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_demo_names_the_photographs_and_leaves_nothing_behind(lensgate: Run, tmp_path: Path) -> None:
    run = lensgate("demo", "--once", environment={"TMPDIR": str(tmp_path), "COLUMNS": "300"})
    assert run.returncode == 0, run.stderr
    _, coffee, cat, rocket = re.split(r"^(?:coffee\.png|chelsea\.png|rocket\.jpg)$", run.stdout, flags=re.MULTILINE)
    assert first_label(coffee) == "espresso"
    assert first_label(cat) in {"tabby", "tiger cat", "Egyptian cat"}
    assert first_label(rocket) in {"missile", "projectile", "space shuttle"}
    assert "decode" in coffee
    assert list(tmp_path.iterdir()) == []


def test_the_demo_says_so_when_the_packaged_weights_stand_in(lensgate: Run, tmp_path: Path) -> None:
    # A cache that cannot be filled: the download's folder would have to be below a file.
    (tmp_path / "file").touch()
    run = lensgate("demo", "--once", environment={"TORCH_HOME": str(tmp_path / "file" / "cache"), "COLUMNS": "300"})
    assert run.returncode == 0, run.stderr
    assert "the packaged efficientnet_lite0 answers instead" in run.stdout


def test_the_demo_says_in_one_line_why_a_model_cannot_be_had(lensgate: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = lensgate("demo", "--once", "--model", "resnet50", environment={"TORCH_HOME": str(tmp_path / "file" / "cache")})
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("lensgate: error: The weights c")
    assert "resnet50-" in line


def test_a_taken_port_is_called_by_the_demos_own_name(lensgate: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = lensgate("demo", "--port", str(taken.getsockname()[1]))
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.endswith("it is taken by another program (--port)")


def test_the_printed_commands_repeat_it_while_it_stays_up_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "api.cli", "demo", "--model", "efficientnet_lite0"],
        env=Service.clean_environment({"TMPDIR": str(tmp_path), "COLUMNS": "300"}),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        shown = []
        for line in demo.stdout:
            shown.append(line.strip())
            if "stays up" in line:
                break
        script = "\n".join(line for line in shown if line.startswith(("TOKEN=", "curl ")))
        answer = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60, check=True)
        assert '"label":"espresso"' in answer.stdout
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) == 2 + usable_cores()  # an engine, a worker and its decoders
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
    assert [member for member in family if member.is_running()] == []
    assert list(tmp_path.iterdir()) == []


def first_label(shown: str) -> str:
    """The label in front of the first bar."""
    return re.split(r"\s{2,}", shown.strip())[0]
