"""The tables of a soak, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from soak.honest import HONEST
from soak.ledger import Ledger
from soak.memory import Life
from soak.run import Outcome

_MIB = 2**20


def render(outcome: Outcome) -> str:
    """All that was counted."""
    ledger = outcome.ledger
    return "\n\n".join(
        [
            "\n".join(_summary(outcome)),
            "\n".join(_answers(ledger)),
            "\n".join(_faults(ledger)),
            "\n".join(_memory(outcome.lives)),
        ]
    )


def _summary(outcome: Outcome) -> Iterator[str]:
    ledger = outcome.ledger
    yield "| | |"
    yield "|---|---:|"
    yield f"| seed | {outcome.seed} |"
    faulty_s = sum(one.ended_s - one.began_s for one in ledger.windows)
    yield f"| seconds | {outcome.seconds:.0f}, of which {faulty_s:.0f} with a fault in force |"
    yield f"| requests of honest clients | {ledger.requests[HONEST]:,} |"
    yield f"| requests of hostile ones | {sum(ledger.requests.values()) - ledger.requests[HONEST]:,} |"
    yield f"| pictures classified, each checked | {ledger.images:,} |"
    yield f"| **lost** | **{ledger.lost.count}** |"
    yield f"| **wrong** | **{ledger.wrong.count}** |"
    yield f"| cut: in the hands of a killed API worker | {ledger.cut.count}, of {ledger.held_by_killed} connections that they held |"
    yield f"| not sent: the connection ended before the request was out, and the client asked again | {ledger.not_sent[HONEST]} |"
    for faulted, name in ((False, "without"), (True, "with")):
        ordered = sorted(ledger.latencies_s[faulted])
        yield f"| p50, p99 {name} faults, ms | {_quantile_ms(ordered, 0.5):.0f}, {_quantile_ms(ordered, 0.99):.0f} of {len(ordered):,} |"


def _answers(ledger: Ledger) -> Iterator[str]:
    yield "| who asked | answers without faults | answers while one was in force | no answer |"
    yield "|---|---|---|---:|"
    for who in sorted(ledger.requests, key=lambda name: (name != HONEST, name)):
        counted = Counter({key: count for key, count in ledger.answers.items() if key[0] == who})
        without, during = (_statuses(counted, faulted=faulted) for faulted in (False, True))
        yield f"| {who} | {without} | {during} | {ledger.requests[who] - counted.total():,} |"


def _statuses(counted: Counter[tuple[str, int, bool]], *, faulted: bool) -> str:
    return ", ".join(f"{count:,} × {status}" for (_, status, at), count in sorted(counted.items()) if at == faulted)


def _faults(ledger: Ledger) -> Iterator[str]:
    yield "| fault | times | well again after, s (longest) |"
    yield "|---|---:|---:|"
    ordered = sorted(ledger.windows)
    for name, windows in groupby(ordered, key=lambda window: window.fault):
        took_s = [window.ended_s - window.began_s for window in windows]
        yield f"| {name} | {len(took_s)} | {max(took_s):.1f} |"


def _memory(lives: Sequence[Life]) -> Iterator[str]:
    yield "| process | lived, s | at a third, MiB | at the end, MiB | growth |"
    yield "|---|---:|---:|---:|---:|"
    for life in sorted(lives, key=lambda one: (one.name, one.samples[0].at_s)):
        growth = f"{life.growth:+.1%}" if life.is_judged else "too short a life"
        yield f"| {life.name} | {life.seconds:.0f} | {life.third_bytes / _MIB:.1f} | {life.end_bytes / _MIB:.1f} | {growth} |"


def _quantile_ms(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3 if ordered else 0.0
