"""Pixels on the GPU for the profile ``default``: nvImageCodec decodes, CV-CUDA resizes.

Only what the GPU does as the reference does goes there: RGB and grey JPEG, whose decoding
nvImageCodec does like libjpeg once fancy upsampling is on. Everything else (PNG, WebP, CMYK, …),
and every file nvImageCodec returns None for, takes the reference path of
``nima_client.preprocess``, which scores it or says why not. One bad file is one rejection, never a
failed batch.
"""

import numpy as np
from nvidia import nvimgcodec

from nima_client.preprocess import ImageRejected, inspect_header, preprocess

GPU_MODES = ("RGB", "L")
DECODED_BYTES = 512 << 20
"""Decoded pixels held on the GPU at a time; a batch of camera originals takes several rounds."""
CACHE_BYTES = 256 << 20
"""What CV-CUDA keeps of freed buffers; by default it is half of the GPU, which TensorRT shares."""


class JpegDecoder:
    """nvImageCodec for JPEG, upright and in RGB, full size.

    Args:
        device_id: CUDA device, or None for the CPU decoders alone.
        threads: CPU threads for parsing and Huffman decoding.
    """

    def __init__(self, device_id, threads=4):
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


class CvCuda:
    """Resizing and stacking on the GPU, on a stream of its own.

    Args:
        spec: preprocessing specification.
        device_id: CUDA device; None leaves everything where it is (what the tests do).
    """

    def __init__(self, spec, device_id):
        if device_id is not None:
            # CV-CUDA allocates and launches on the thread's current device, which is 0 in every
            # process Triton starts, whatever GPU the instance was put on.
            from cuda.bindings import runtime

            (status,) = runtime.cudaSetDevice(device_id)
            if int(status) != 0:
                raise RuntimeError(f"cudaSetDevice({device_id}): {status!r}")
        import cvcuda

        cvcuda.set_cache_limit_inbytes(CACHE_BYTES)
        self._cv = cvcuda
        self._device_id = device_id
        self._stream = cvcuda.Stream()
        self.stream_handle = self._stream.handle
        bilinear = spec.interpolation == "bilinear"
        self._interpolation = cvcuda.Interp.LINEAR if bilinear else cvcuda.Interp.CUBIC
        self._spec = spec

    def resize(self, image):
        """A decoded image as the tensor ``[S, S, 3]`` of the specification."""
        tensor = self._cv.as_tensor(image, "HWC")
        height, width = tensor.shape[:2]
        target_width, target_height = resized_size(width, height, self._spec)
        tensor = self._cv.pillowresize(
            tensor,
            (target_height, target_width, 3),
            self._cv.Format.RGB8,
            self._interpolation,
            stream=self._stream,
        )
        side = self._spec.crop_size
        if (target_width, target_height) != (side, side):
            left, top = (target_width - side) // 2, (target_height - side) // 2
            tensor = self._cv.customcrop(
                tensor, self._cv.RectI(left, top, side, side), stream=self._stream
            )
        return tensor

    def upload(self, pixels):
        """Pixels of the reference path, as a tensor ``[S, S, 3]`` on the GPU."""
        image = nvimgcodec.as_image(np.ascontiguousarray(pixels))
        if self._device_id is not None:
            image = image.cuda(device_id=self._device_id, cuda_stream=self.stream_handle)
        return self._cv.as_tensor(image, "HWC")

    def stack(self, tensors):
        """One tensor ``[B, S, S, 3]`` of a request's images; :meth:`wait` before it is read."""
        side = self._spec.crop_size
        # CV-CUDA pads rows by default; Triton takes DLPack tensors without gaps only.
        shape = (len(tensors), side, side, 3)
        stacked = self._cv.Tensor(shape, self._cv.Type.U8, "NHWC", rowalign=1)
        self._cv.stack_into(stacked, tensors, stream=self._stream)
        return stacked.cuda()

    def wait(self):
        """Until all that was asked for is done: Triton hands tensors on without our stream."""
        self._stream.sync()


def resized_size(width, height, spec):
    """Width and height after the resize, before the crop; as nima_client.preprocess has them."""
    size = spec.resize_size
    if spec.resize == "stretch":
        return size, size
    short = min(width, height)
    return max(size, round(width * size / short)), max(size, round(height * size / short))


class GpuPixels:
    """Encoded files to pixels, file by file a tensor or the reason why not.

    Args:
        spec: preprocessing specification.
        limits: bytes and pixels an image may have; checked on the header, before decoding.
        decoder: a :class:`JpegDecoder`.
        operations: a :class:`CvCuda`, or the like of it.
    """

    def __init__(self, spec, limits, decoder, operations):
        self._spec, self._limits = spec, limits
        self._decoder, self._operations = decoder, operations

    def __call__(self, files):
        """Preprocess the files of any number of requests as one batch.

        Returns:
            For each file a tensor uint8 ``[S, S, 3]`` or an ``ImageRejected``.
        """
        results = [None] * len(files)
        sizes = {}
        for index, data in enumerate(files):
            try:
                header = inspect_header(data, self._limits)
            except ImageRejected as error:
                results[index] = error
                continue
            if header.format == "JPEG" and header.mode in GPU_MODES:
                sizes[index] = 3 * header.width * header.height
        for chosen in rounds(sizes, DECODED_BYTES):
            try:
                self._on_gpu(files, chosen, results)
            except Exception:  # the GPU is full, say: the CPU scores what is left of this round
                continue
        for index, data in enumerate(files):
            if results[index] is None:
                try:
                    pixels = preprocess(data, self._spec, self._limits)
                except ImageRejected as error:
                    results[index] = error
                else:
                    results[index] = self._operations.upload(pixels)
        return results

    def _on_gpu(self, files, chosen, results):
        images = self._decoder.decode(
            [files[index] for index in chosen], self._operations.stream_handle
        )
        for index, image in zip(chosen, images):
            if image is not None:
                results[index] = self._operations.resize(image)
        # Before the decoded images are freed and the next round takes their place.
        self._operations.wait()

    def stack(self, requests):
        """The pixels of each request, ``[B, S, S, 3]``, as objects that speak DLPack.

        They are complete when this returns.
        """
        stacked = [self._operations.stack(tensors) for tensors in requests]
        self._operations.wait()
        return stacked


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


def on_gpu(spec, limits, device_id):
    """What the profile ``default`` runs.

    Args:
        spec: preprocessing specification.
        limits: bytes and pixels an image may have.
        device_id: CUDA device; None where Triton put the instance on the CPU: CPU decoders then.

    Raises:
        ImportError: nvImageCodec or CV-CUDA is missing from the image.
        RuntimeError: there is no such device.
    """
    operations = CvCuda(spec, device_id)
    return GpuPixels(spec, limits, JpegDecoder(device_id), operations)
