"""Pixels on the GPU for the profiles ``default`` and ``embedded-gpu``: nvImageCodec decodes.

CV-CUDA resizes (``gpu_resize.py``). Only what the GPU does as the reference does goes there: RGB
and grey JPEG, whose decoding nvImageCodec does like libjpeg once fancy upsampling is on, and whose
head it reads like Pillow (``gpu_jpeg.py``). Everything else (PNG, WebP, CMYK, …), and every file
nvImageCodec returns None for, takes the reference path of ``nima_client.preprocess``, which scores
it or says why not. One bad file is one rejection, never a failed batch.
"""

import io

from gpu_jpeg import is_read_alike
from gpu_resize import CvCuda
from nvidia import nvimgcodec
from PIL import Image

from nima_client._quick_header import baseline_jpeg
from nima_client.contract import MAX_BATCH_SIZE
from nima_client.preprocess import inspect_header, preprocess

GPU_MODES = ("RGB", "L")
DECODED_BYTES = 512 << 20
"""Decoded pixels held on the GPU at a time; a batch of camera originals takes several rounds."""
END_OF_JPEG = b"\xff\xd9"


class JpegDecoder:
    """nvImageCodec for JPEG, upright and in RGB, full size.

    Args:
        device_id: CUDA device, or None for the CPU decoders alone.
        batch: the most files that will be decoded at once.
        threads: CPU threads for parsing and Huffman decoding.
    """

    def __init__(self, device_id, batch=MAX_BATCH_SIZE, threads=4):
        # All backends: the hardware decoder where the GPU has one, CUDA, and libjpeg-turbo last.
        backends = None
        if device_id is None:
            device_id = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
            backends = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
        self._decoder = nvimgcodec.Decoder(
            device_id=device_id,
            max_num_cpu_threads=threads,
            backends=backends,
            # Off by default in some versions; without it chroma is up to 25/255 from libjpeg.
            options=":fancy_upsampling=1",
        )
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=True, color_spec=nvimgcodec.ColorSpec.SRGB
        )
        # Of no later batch does the hardware decoder take more files than it took of the first one
        # (adjustBatchSizes in nvImageCodec's src/image_generic_codec.h, 0.8): CUDA and the CPU
        # would decode the others, at a quarter of the speed.
        first = io.BytesIO()
        Image.new("RGB", (64, 64)).save(first, "JPEG")
        self.decode([first.getvalue()] * batch)

    def decode(self, files, stream=0):
        """Decode a batch.

        Args:
            files: encoded images, bytes.
            stream: CUDA stream handle to synchronise with.

        Returns:
            One image uint8 ``[H, W, 3]`` a file, None for each that could not be decoded.
        """
        images = [None] * len(files)
        parsed = {}
        for index, data in enumerate(files):
            try:
                parsed[index] = nvimgcodec.CodeStream(data)
            except Exception:  # its errors are plain RuntimeError; the reference path explains
                continue
        if parsed:
            decoded = self._decoder.decode(
                list(parsed.values()), params=self._params, cuda_stream=stream
            )
            for index, image in zip(parsed, decoded):
                images[index] = image
        return images


class GpuPixels:
    """Encoded files to pixels, request by request a batch or the reasons why not.

    Args:
        spec: preprocessing specification.
        limits: bytes and pixels an image may have; checked on the header, before decoding.
        decoder: a :class:`JpegDecoder`.
        operations: a :class:`CvCuda`, or the like of it.
        report: called with an exception that cost the GPU a round; the CPU has done its work.
        host_below: requests of fewer images get their pixels on the host. A tensor on the GPU
            passes between Triton's processes without a copy, but each costs them more than the
            copy of a few images.
    """

    def __init__(self, spec, limits, decoder, operations, report=None, host_below=0):
        self._spec, self._limits, self._host_below = spec, limits, host_below
        self._decoder, self._operations = decoder, operations
        self._report = report or (lambda error: None)

    def __call__(self, requests):
        """Preprocess the files of any number of requests as one batch.

        Args:
            requests: lists of files.

        Returns:
            For each request its pixels uint8 ``[B, S, S, 3]``, complete, as an object that speaks
            DLPack or an array of the host; or, where files of it got none, a list of
            ``(index, error)``: ImageRejected, or what else went wrong with this file (no memory).
        """
        homes, shared = self._allocate(requests)
        work = {
            (number, index): data
            for number, files in enumerate(requests)
            for index, data in enumerate(files)
        }
        refused, sizes = {}, {}
        for place, data in work.items():
            try:
                size = self._size_for_gpu(data)
            except Exception as error:
                refused[place] = error
            else:
                if size is not None:
                    sizes[place] = 3 * size[0] * size[1]
        done = set()
        for chosen in rounds(sizes, DECODED_BYTES):
            try:
                done |= self._on_gpu(work, homes, chosen)
            except Exception as error:  # the GPU is full, say: the CPU scores this round
                self._report(error)
        kept = []
        for place, data in work.items():
            if place not in done and place not in refused:
                try:
                    pixels = preprocess(data, self._spec, self._limits)
                except Exception as error:  # for no other request's sake either
                    refused[place] = error
                else:
                    kept.append(self._operations.upload(pixels, _slot(homes, place)))
        self._operations.wait()
        host = self._operations.download(shared) if shared else None
        reasons = [[] for _ in requests]
        for (number, index), error in sorted(refused.items()):
            reasons[number].append((index, error))
        return [
            reasons[number]
            or (batch.exported if batch is not shared else host[start : start + len(files)])
            for number, (files, (batch, start)) in enumerate(zip(requests, homes))
        ]

    def _allocate(self, requests):
        """For each request a batch and where in it the request begins; the batch of all the small
        ones, or None.
        """
        small = [len(files) for files in requests if len(files) < self._host_below]
        shared = self._operations.allocate(sum(small)) if small else None
        homes, start = [], 0
        for files in requests:
            if len(files) < self._host_below:
                homes.append((shared, start))
                start += len(files)
            else:
                homes.append((self._operations.allocate(len(files)), 0))
        return homes, shared

    def _size_for_gpu(self, data):
        """Width and height of what the GPU decodes as the reference does; None for all else."""
        # Of a photo that was cut short the reference says so; a hardware decoder may not.
        whole = END_OF_JPEG in data[-64:]
        limits = self._limits
        found = baseline_jpeg(data) if whole and len(data) <= limits.max_bytes else None
        if found is None or found.width * found.height > limits.max_pixels:
            found = inspect_header(data, limits)
            if found.format != "JPEG" or found.mode not in GPU_MODES or not whole:
                return None
        if not is_read_alike(data):
            return None
        size = found.width, found.height
        # Where a line of pixels would become gigabytes, the reference refuses it.
        return size if self._spec.fits(*size, limits) else None

    def _on_gpu(self, work, homes, chosen):
        images = self._decoder.decode(
            [work[place] for place in chosen], self._operations.stream_handle
        )
        decoded = {place: image for place, image in zip(chosen, images) if image is not None}
        slots = [_slot(homes, place) for place in decoded]
        if decoded:
            self._operations.resize(list(decoded.values()), slots)
        # Before the decoded images are freed and the next round takes their place.
        self._operations.wait()
        return set(decoded)


def _slot(homes, place):
    batch, start = homes[place[0]]
    return batch.slot(start + place[1])


def rounds(sizes, budget):
    """Split ``{index: bytes}``, in order, into lists whose sum stays within the budget."""
    chosen, total = [], 0
    for index, size in sizes.items():
        if chosen and total + size > budget:
            yield chosen
            chosen, total = [], 0
        chosen.append(index)
        total += size
    if chosen:
        yield chosen


def on_gpu(spec, limits, device_id, report=None, host_below=0, batch=MAX_BATCH_SIZE):
    """What the profiles ``default`` and ``embedded-gpu`` run.

    Args:
        spec: preprocessing specification.
        limits: bytes and pixels an image may have.
        device_id: CUDA device; None where Triton put the instance on the CPU: CPU decoders then.
        report: see :class:`GpuPixels`.
        host_below: likewise.
        batch: see :class:`JpegDecoder`.

    Raises:
        ImportError: nvImageCodec or CV-CUDA is missing from the image.
        RuntimeError: there is no such device.
    """
    operations = CvCuda(spec, device_id)
    decoder = JpegDecoder(device_id, batch)
    return GpuPixels(spec, limits, decoder, operations, report, host_below)
