"""Servers of the embedded profile with one thing changed each: for variants.py and bursts.py."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

from nima_build.bench.variant import copy_repository, edit_config
from nima_build.cores import available_cores
from nima_build.rendering import cpu_instances
from nima_build.repository import config_path, read_config, set_precision
from nima_build.server import EmbeddedServer, ServerOptions, _embedded
from nima_build.server._install import wheel_root
from nima_client.contract import NETWORK_MODEL as NETWORK
from nima_client.contract import PREPROCESS_MODEL as PREPROCESS

# Both load their servers as the comparison with peers does.
sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))


def _edit_config(repository: Path, model: str, edit: Callable[..., None]) -> None:
    with edit_config(repository, model, "embedded") as config:
        edit(config)


def _one_step(repository: Path) -> None:
    """Decode and network in one Python model: an ensemble of a single step."""

    def outputs(config: object) -> None:
        network = read_config(config_path(repository, NETWORK, "embedded"))
        del config.output[:]
        config.output.extend(network.output)

    def one_step(config: object) -> None:
        first, second = config.ensemble_scheduling.step
        first.ClearField("output_map")
        first.output_map.update(second.output_map)
        config.ensemble_scheduling.step.remove(second)

    _no_gate(repository)
    _edit_config(repository, PREPROCESS, outputs)
    _edit_config(repository, "nima", one_step)
    model = repository / PREPROCESS / "1" / "model.py"
    graph = read_config(config_path(repository, NETWORK, "embedded")).parameters["graph"]
    onnx = repository / NETWORK / "1" / (graph.string_value or "model.onnx")
    model.write_text(
        model.read_text()
        .replace(
            "        self._spec = ",
            "        from pathlib import Path\n"
            "        from nima_build.onnx_session import cpu_session\n"
            f"        self._session = cpu_session(Path({str(onnx)!r}))\n"
            "        self._spec = ",
            1,
        )
        .replace(
            "return pb_utils.InferenceResponse([pb_utils.Tensor(PIXELS, pixels)])",
            "names = ['DISTRIBUTION', 'MEAN', 'STD']\n"
            "        return pb_utils.InferenceResponse([pb_utils.Tensor(n, o) for n, o in "
            "zip(names, self._session.run(names, {PIXELS: pixels}))])",
        )
    )


def _decoder(**parameters: object) -> Callable[[Path], None]:
    """Parameters of the decoder's config: ``niceness``, ``gate_limit``."""

    def change(repository: Path) -> None:
        def edit(config: object) -> None:
            for name, value in parameters.items():
                config.parameters[name].string_value = str(value)

        _edit_config(repository, PREPROCESS, edit)

    return change


# The decoder runs ahead of the network as it likes.
_no_gate = _decoder(gate_limit=10**6)


def _one_step_unbounded(repository: Path) -> None:
    """One step whose requests go to the instances without a batcher, and so without a limit."""
    _one_step(repository)
    _edit_config(repository, PREPROCESS, lambda config: config.ClearField("dynamic_batching"))


def _rate_limiter(repository: Path) -> None:
    """As many executions at once as there are cores, the network's first (not by niceness)."""
    _no_gate(repository)
    for model, priority in ((PREPROCESS, 2), (NETWORK, 1)):

        def limited(config: object, priority: int = priority) -> None:
            limiter = config.instance_group[0].rate_limiter
            limiter.priority = priority
            limiter.resources.add(name="CORE", count=1, **{"global": True})

        _edit_config(repository, model, limited)


def _response_cache(repository: Path) -> None:
    """Scores of photos seen before, from memory. The run repeats its photos: all but the first."""
    _edit_config(repository, "nima", lambda c: setattr(c.response_cache, "enable", True))


def _in_initialize(line: str) -> Callable[[Path], None]:
    """A line of Python that both models run when they start."""

    def change(repository: Path) -> None:
        for name in (PREPROCESS, NETWORK):
            model = repository / name / "1" / "model.py"
            text = model.read_text()
            begin = '        config = json.loads(args["model_config"])\n'
            assert begin in text
            model.write_text(text.replace(begin, f"        {line}\n{begin}", 1))

    return change


_CORES = available_cores()
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "134217728", "MALLOC_TRIM_THRESHOLD_": "134217728"}

# name -> (edit of the repository, arguments of tritonserver, environment, decoders and networks)
VARIANTS: dict[str, tuple] = {
    "shipped": (None, (), {}, None),
    "int8": (None, (), {}, None),
    "decoder-a-core": (None, (), {}, (_CORES, _CORES)),
    "two-decoders-more": (None, (), {}, (_CORES + 2, _CORES)),
    "one-step": (_one_step, (), {}, (_CORES, _CORES)),
    "one-step-more": (_one_step, (), {}, (_CORES + 1, _CORES)),
    "one-step-unbounded": (_one_step_unbounded, (), {}, (_CORES, _CORES)),
    "no-gate": (_no_gate, (), {}, None),
    "gate-once": (_decoder(gate_limit=_CORES), (), {}, None),
    "gate-six": (_decoder(gate_limit=6 * _CORES), (), {}, None),
    # What held the decoder back before there was a gate.
    "niceness": (_decoder(gate_limit=10**6, niceness=6), (), {}, None),
    "rate-limiter": (
        _rate_limiter,
        ("--rate-limit=execution_count", f"--rate-limit-resource=CORE:{_CORES}"),
        {},
        None,
    ),
    # The kernel does not take the core from one that runs when another wakes up.
    "batch-policy": (
        _in_initialize("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"),
        (),
        {},
        None,
    ),
    "pinned": (
        _in_initialize(
            "os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))"
            "[int(args['model_instance_name'].rsplit('_', 1)[1]) % len(os.sched_getaffinity(0))]})"
        ),
        (),
        {},
        None,
    ),
    "malloc": (None, (), _MALLOC, None),
    "huge-pages": (None, (), {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, None),
    "one-network-more": (None, (), {}, (_CORES + 2, _CORES + 1)),
    "response-cache": (
        _response_cache,
        ("--cache-config=local,size=67108864", f"--cache-directory={wheel_root() / 'caches'}"),
        {},
        None,
    ),
    "http-threads-2": (None, ("--http-thread-count=2",), {}, None),
}


def variant_names(text: str) -> list[str]:
    """Names of :data:`VARIANTS`, separated by commas; an argparse type."""
    names = text.split(",")
    for name in names:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(
                f"no variant {name!r}: there are {', '.join(VARIANTS)}"
            )
        if names.count(name) > 1:
            raise argparse.ArgumentTypeError(f"{name} is named twice")
    return names


@contextlib.contextmanager
def server(name: str, repository: Path, folder: Path, precision: str) -> Iterator[EmbeddedServer]:
    """A server of one of :data:`VARIANTS`."""
    edit, arguments, environment, instances = VARIANTS[name]
    precision = "int8" if name == "int8" else precision
    copy = copy_repository(repository, folder / name)
    _edit_config(copy, NETWORK, lambda config: set_precision(config, precision))
    if edit is not None:
        edit(copy)
    options = ServerOptions(
        model_repository=copy,
        extra_arguments=arguments,
        precision=precision,
    )
    counts = dict(zip((PREPROCESS, NETWORK), instances or ()))
    with (
        unittest.mock.patch.dict(os.environ, environment),
        unittest.mock.patch.object(
            _embedded, "cpu_instances", lambda images: counts or cpu_instances(images)
        ),
    ):
        running = EmbeddedServer(options)
        running.start()
    try:
        yield running
    finally:
        running.stop()
