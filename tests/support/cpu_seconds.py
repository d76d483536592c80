"""`pytest --cpu-seconds 40`: the 40 tests that cost most, and the cost of each file, in CPU seconds.

CPU seconds (user and system, of this process and of the processes it waited for) do not depend on what else the
machine does; `--durations` counts wall-clock seconds, which do.
"""

import os
from collections import Counter

import pytest


def cpu_seconds():
    """CPU seconds used so far by this process and by the children that have ended."""
    return sum(os.times()[:4])


def pytest_addoption(parser):
    parser.addoption("--cpu-seconds", type=int, default=None, metavar="N", help="list the N tests that cost most CPU")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    start = cpu_seconds()
    report = yield
    report.cpu_seconds = cpu_seconds() - start
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.started = cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    report.cpu_seconds = cpu_seconds() - item.started
    item.started += report.cpu_seconds
    return report


def pytest_terminal_summary(terminalreporter, config):
    count = config.getoption("--cpu-seconds")
    if count is None:
        return
    tests, files = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if seconds := getattr(report, "cpu_seconds", 0.0):  # a warning is no report of a test
                tests[report.nodeid] += seconds
                files[report.nodeid.split("::")[0]] += seconds
    terminalreporter.section(f"CPU seconds: {sum(files.values()):.0f} in all")
    for name, seconds in [*tests.most_common(count), *files.most_common()]:
        terminalreporter.write_line(f"{seconds:8.1f}  {name}")
