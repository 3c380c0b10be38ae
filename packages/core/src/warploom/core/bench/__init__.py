"""The benchmark harness: definitions, timing, ceilings of the machine, reports.

``tools/bench`` is its command; each family defines its benchmarks in ``tools/bench/<family>.py``, or in a package of
that name, as a list `BENCHMARKS`.

==================  ================================================================
module              what it does
==================  ================================================================
``definition``      `Benchmark`, `Peer`, `Target`, `Work`: what is compared, at which sizes
``timing``          device time (CUDA graphs, flushed L2), direct calls, wall-clock and host time
``ceilings``        what this machine can do at best, measured in the same run
``environment``     GPU, versions and commit that a result belongs to
``ranks``           benchmarks under ``mpirun``
``runner``          verify, then time, case by case
``outputs``         poisoned outputs, and the rows of them that are checked
``suites``          the definitions of a checkout
``report``          tables as text, Markdown and JSON
``chart``           a chart of the results, if matplotlib is there
``tuner``           measurements of all backends, written as tuning tables
==================  ================================================================
"""

from warploom.core.bench.definition import Benchmark, Peer, Target, Work
from warploom.core.bench.timing import Timing, host_time_us, make_timer
from warploom.core.testing.grids import grid

__all__ = ["Benchmark", "Peer", "Target", "Timing", "Work", "grid", "host_time_us", "make_timer"]
