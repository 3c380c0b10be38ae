"""The benchmark harness: definitions, timing, ceilings of the machine, reports.

``tools/bench`` is its command; each family defines its benchmarks in ``tools/bench/<family>.py`` as a list
`BENCHMARKS`.

==================  ================================================================
module              what it does
==================  ================================================================
``definition``      `Benchmark`, `Peer`, `Work`: what is compared, at which sizes
``timing``          device time (CUDA graphs, flushed L2), wall-clock and host time
``ceilings``        what this machine can do at best, measured in the same run
``environment``     GPU, versions and commit that a result belongs to
``ranks``           benchmarks under ``mpirun``
``runner``          verify, then time, case by case
``report``          tables as text, Markdown and JSON
``chart``           a chart of the results, if matplotlib is there
``tuner``           measurements of all backends, written as tuning tables
==================  ================================================================
"""

from warploom.core.bench.definition import Benchmark, Peer, Work
from warploom.core.bench.timing import Timing, host_time_us, make_timer
from warploom.core.testing.grids import grid

__all__ = ["Benchmark", "Peer", "Timing", "Work", "grid", "host_time_us", "make_timer"]
