"""Load tests that say how far a server is from what its machine can do.

    photos  -> perf_analyzer inputs            (:mod:`~nima_build.bench.photos`)
    limit:     decode and network in process   (:mod:`~nima_build.bench.limit`)
    load:      the real perf_analyzer          (:mod:`~nima_build.bench.perf_analyzer`)
               open loop through the SDK       (:mod:`~nima_build.bench.open_loop`)
    stages:    Triton's own statistics         (:mod:`~nima_build.bench.stages`)
    run:       everything in turn, repeated    (:mod:`~nima_build.bench.session`)
    report:    CSV, JSON, Markdown, plots      (:mod:`~nima_build.bench.report`)
    scripts:   of benchmarks/: command lines   (:mod:`~nima_build.bench.arguments`)
               choices in rounds               (:mod:`~nima_build.bench.rounds`)

Times of different runs are never compared: a machine's speed drifts. Everything that is compared
is measured in turn within one run, and given as a ratio.
"""


class BenchError(RuntimeError):
    """A load test cannot be run; the message says what to do."""
