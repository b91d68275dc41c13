"""The network as PyTorch compiled it, run in large batches: pixels in, scores out.

On a GPU every batch size that is run has a CUDA graph of its own, recorded when the package is
opened; a batch between two of them is filled up to the larger with images of earlier batches, whose
scores are left out. All buffers are made once.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path

import numpy as np
import torch
from torch._inductor import aoti_load_package, config

from nima_client._package import check_package

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes with a CUDA graph, as far as needed; each costs a start some seconds."""
_COLUMNS = 12
_CPU = torch.device("cpu")


def capability(device):
    """Compute capability of a torch device as the manifest has it: ``9.0``, or ``cpu``."""
    if torch.device(device).type == "cpu":
        return "cpu"
    return "{}.{}".format(*torch.cuda.get_device_capability(device))


class CompiledNetwork:
    """A package of ``nima build --target inductor`` on one device; one thread at a time.

    Args:
        path: ``model.pt2``; beside it lie its manifest and, where the network is served,
            ``model.json``, which says what it must have been built from.
        device: ``cuda:0``, or ``cpu``.
        graphs: record CUDA graphs; without them every batch is launched kernel by kernel.
        max_batch: the most images that will come at once; None, or more than the package takes, is
            what that takes.

    Attributes:
        manifest: what the package was built from and for.
        sizes: batch sizes that are run where there are CUDA graphs.
        graph_error: why there are no CUDA graphs where there should be, or empty.

    Raises:
        nima_client._package.PackageError: missing, damaged, or it does not fit.
        RuntimeError: PyTorch cannot load or run it, or there is no such device.
    """

    def __init__(self, path, device="cuda:0", *, graphs=True, max_batch=None):
        path, self._device = Path(path), torch.device(device)
        self._gpu = self._device.type == "cuda"
        if self._gpu and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        facts = {}
        if (beside := path.with_name("model.json")).is_file():
            facts = json.loads(beside.read_text())
        self.manifest = check_package(
            path,
            checkpoint_sha256=facts.get("checkpoint_sha256"),
            preprocessing_id=facts.get("preprocessing_id"),
            torch_version=torch.__version__,
            compute_capability=capability(self._device),
        )
        size, self._largest = self.manifest.image_size, self.manifest.max_batch
        if max_batch is not None:
            self._largest = min(self._largest, max_batch)
        shape = (self._largest, size, size, 3)
        index = self._device.index if self._gpu else -1
        self._stream = None
        if self._gpu:
            # The generated code allocates and launches on the current device.
            torch.cuda.set_device(self._device)
            self._stream = torch.cuda.Stream(self._device)
            if self.manifest.precision == "fp32":
                # On by default, and no more precise than FP16.
                torch.backends.cudnn.allow_tf32 = False
        # PyTorch 2.11 compiles a test program for every vector unit of the CPU, only to warn of
        # another one: half a minute at each start. Nothing that runs on a GPU has any.
        with config.patch({"cpp.vec_isa_ok": False} if self._gpu else {}):
            # Single-threaded: without the events that a CUDA graph could not record.
            package = aoti_load_package(str(path), run_single_threaded=True, device_index=index)
        # Calling the package itself parses its tree of arguments anew each time.
        self._run_boxed = package.loader.boxed_run
        self._package = package
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        self._staging = None
        if self._gpu:
            self._staging = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._scores = torch.zeros((self._largest, _COLUMNS), pin_memory=self._gpu)
        self._numpy = self._scores.numpy()
        self.sizes = [one for one in SIZES if one < self._largest] + [self._largest]
        self._graphs = {}
        self.graph_error = ""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._warm_up(graphs)

    def __call__(self, pieces):
        """Score the images of all pieces as one batch, or as few as the package allows.

        Args:
            pieces: tensors uint8 ``[B, S, S, 3]``, RGB, contiguous, each on the CPU or a GPU.

        Returns:
            float32 array ``[N, 12]``, rows in the order of the images: distribution (10), mean,
            standard deviation.

        Raises:
            RuntimeError: the device failed, or the pieces have other shapes.
        """
        count = sum(len(piece) for piece in pieces)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if count <= self._largest:
                return self._score(pieces, count)
            parts = torch.cat([piece.to(self._device) for piece in pieces]).split(self._largest)
            return np.concatenate([self._score([part], len(part)) for part in parts])

    def upload(self, pixels):
        """An array uint8 ``[N, S, S, 3]`` as a tensor on the device."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)

    def score(self, pixels):
        """Score an array uint8 ``[N, S, S, 3]``: float32 ``[N, 12]``; see :meth:`__call__`."""
        return self([torch.from_numpy(np.ascontiguousarray(pixels))])

    def _score(self, pieces, count):
        self._gather(pieces, count)
        if self._graphs:
            graph, columns = self._graphs[self.sizes[bisect_left(self.sizes, count)]]
            graph.replay()
        else:
            columns = self._launch(count)
        self._scores[:count].copy_(columns[:count], non_blocking=True)
        if self._gpu:
            self._stream.synchronize()
        return self._numpy[:count].copy()

    def _gather(self, pieces, count):
        """Put the images side by side where the network reads them."""
        target = self._pixels[:count]
        devices = {piece.device for piece in pieces}
        if devices == {self._device}:
            torch.cat(pieces, out=target)
        elif devices == {_CPU}:
            staging = self._staging[:count]
            torch.cat(pieces, out=staging)
            target.copy_(staging, non_blocking=True)
        else:
            for rows, piece in zip(target.split([len(piece) for piece in pieces]), pieces):
                rows.copy_(piece)

    def _launch(self, count):
        return self._run_boxed([self._pixels[:count]])[0]

    def _warm_up(self, graphs):
        """Run one image; on a GPU the largest batch too, and record a graph of every size."""
        self._launch(1)
        if not self._gpu:
            return
        self._launch(self._largest)
        self._stream.synchronize()
        if not graphs:
            return
        try:
            # Largest first: the others then fit into the memory it took.
            for count in reversed(self.sizes):
                self._graphs[count] = self._record(count)
        except RuntimeError as error:
            self._graphs = {}
            self.graph_error = " ".join(str(error).split())[:300]
            self._launch(1)
            self._stream.synchronize()

    def _record(self, count):
        # What loads kernels or allocates for good must not happen while a graph is recorded.
        for _ in range(2):
            self._launch(count)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        with torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            columns = self._launch(count)
        graph.replay()
        self._stream.synchronize()
        return graph, columns
