"""Refuses to measure a debug core; runs the systems; takes samples in turn; prints one table of medians and
ratios.

The samples of a workload are taken interleaved: one of each system, in a rotating order, then the next round,
so that what else the machine does hits all alike. pytest-benchmark then gets them replayed on a clock of its
own, for its statistics, storage and comparison.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from rows import DIRECT, KEYNET, PURE, TLS, Row, all_rows  # noqa: E402

NAMES = [DIRECT, TLS, KEYNET, PURE]
OUTPUT = HERE.parent / ".benchmarks" / "keynet.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("keynet")
    group.addoption("--quick", action="store_true", help="two rounds of small sizes: whether it runs, not how fast")
    group.addoption("--without-core", action="store_true", help="measure only what needs no built core")
    group.addoption("--rounds", type=int, default=9, help="samples of each system (default: 9)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-core"):
        return
    try:
        from keynet import _keynet
    except ImportError as e:
        pytest.exit(f"keynet is not built: {e}; `make bench` builds it", returncode=2)
    if _keynet.BUILD != "release":
        pytest.exit("this is a debug build of keynet: its numbers would mean nothing; use `make bench`", returncode=2)


class Measurements:
    """Samples in seconds, by workload and system, and how a workload is shown."""

    def __init__(self, rows: list[Row], rounds: int, quick: bool) -> None:
        self.rows, self.rounds, self.quick = rows, 2 if quick else rounds, quick
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.units: dict[str, tuple[str, Callable[[float], float]]] = {}

    def take(self, workload: str, unit: str, shown: Callable[[float], float], sample: Callable[[Row], float]) -> None:
        """Once a workload: `sample` returns seconds for one unit of work, `shown` makes a figure of them."""
        if workload in self.samples:
            return
        self.units[workload] = unit, shown
        taken: dict[str, list[float]] = {row.name: [] for row in self.rows}
        for number in range(-1, self.rounds):
            shift = number % len(self.rows)
            for row in self.rows[shift:] + self.rows[:shift]:
                seconds = sample(row)
                if number >= 0:  # the first round warms up
                    taken[row.name].append(seconds)
        self.samples[workload] = taken


_measurements: Measurements | None = None


@pytest.fixture(scope="session")
def measurements(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurements]:
    global _measurements
    for variable in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):  # they bypass even an explicit proxy
        os.environ.pop(variable, None)
    option = request.config.getoption
    with all_rows(tmp_path_factory.mktemp("rows"), not option("--without-core")) as rows:
        _measurements = Measurements(rows, option("--rounds"), option("--quick"))
        yield _measurements


@pytest.fixture(params=NAMES)
def replayed(request: pytest.FixtureRequest, measurements: Measurements) -> Callable[[str], None]:
    """Called with a workload, gives pytest-benchmark this system's samples."""
    name = request.param

    def replay(workload: str) -> None:
        samples = measurements.samples[workload].get(name)
        if samples is None:
            pytest.skip("not measured")
        clock = ReplayClock(samples)
        request.node.add_marker(pytest.mark.benchmark(timer=clock.read))
        benchmark = request.getfixturevalue("benchmark")
        benchmark.group, benchmark.name = workload, name
        benchmark.pedantic(clock.advance, rounds=len(samples))

    return replay


class ReplayClock:
    """A clock that moves by one sample whenever `advance` is called."""

    def __init__(self, samples: list[float]) -> None:
        self._samples = iter(samples)
        self._now = 0.0

    def advance(self) -> None:
        self._now += next(self._samples, 0.0)

    def read(self) -> float:
        return self._now


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measurements is None or not _measurements.samples:
        return
    lines = table(_measurements)
    terminalreporter.section("medians, interleaved; in brackets: how many times as fast as direct TCP, as pure Python")
    for line in lines:
        terminalreporter.write_line(line)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report(_measurements), indent=1) + "\n")
    terminalreporter.write_line(f"\nwritten to {OUTPUT}")
    if _measurements.quick:
        terminalreporter.write_line("--quick: these are no measurements")


def table(measured: Measurements) -> list[str]:
    """Markdown, as benches/README.md holds it."""
    names = [row.name for row in measured.rows]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for workload, taken in measured.samples.items():
        unit, shown = measured.units[workload]
        medians = {name: statistics.median(taken[name]) for name in names}
        cells = [
            f"{shown(medians[name]):,.4g} ({ratio(medians, DIRECT, name)}, {ratio(medians, PURE, name)})"
            for name in names
        ]
        lines.append(f"| {workload}, {unit} | " + " | ".join(cells) + " |")
    return lines


def ratio(medians: dict[str, float], base: str, name: str) -> str:
    return f"{medians[base] / medians[name]:.2g}x"


def report(measured: Measurements) -> dict[str, object]:
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "tcp congestion control where the benchmarks do not choose": tcp_controller(),
        },
        "rounds": measured.rounds,
        "quick": measured.quick,
        "unit of samples": "seconds for one unit of work",
        "workloads": {
            workload: {"shown in": measured.units[workload][0], "samples": taken}
            for workload, taken in measured.samples.items()
        },
    }


def tcp_controller() -> str:
    file = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return file.read_text().strip() if file.exists() else "unknown"
