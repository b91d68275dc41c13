"""Resizing on the GPU with CV-CUDA, each image of a batch into its place there."""

import numpy as np
from nvidia import nvimgcodec

WORKSPACE_PIXELS = 64 << 20
"""Of a batch that is resized at once, were each of its images as large as the largest."""
CACHE_BYTES = 256 << 20
"""What CV-CUDA keeps of freed buffers; by default it is half of the GPU, which TensorRT shares."""


class CvCuda:
    """Resizing on the GPU, on a stream of its own, each image into its place in a batch.

    Args:
        spec: preprocessing specification.
        device_id: CUDA device; None leaves everything where it is (what the tests do).
    """

    def __init__(self, spec, device_id):
        if device_id is not None:
            # CV-CUDA allocates and launches on the thread's current device, which is 0 in every
            # process Triton starts, whatever GPU the instance was put on.
            from cuda.bindings import runtime

            self._cuda = runtime
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

    def allocate(self, count):
        """A :class:`Batch` for so many images."""
        side = self._spec.crop_size
        # CV-CUDA pads rows by default; Triton takes DLPack tensors without gaps only.
        shape = (count, side, side, 3)
        return Batch(self._cv.Tensor(shape, self._cv.Type.U8, "NHWC", rowalign=1))

    def resize(self, images, slots):
        """Decoded images, each into its :class:`Slot`; what is given must live until :meth:`wait`.

        Where nothing is cropped, images of like size take one launch: an operation for each would
        cost 45 microseconds of Python a photo, as much as its decoding.
        """
        if self._spec.resize != "stretch" or self._spec.resize_size != self._spec.crop_size:
            for image, slot in zip(images, slots):
                self._resize_and_crop(image, slot)
            return
        for chosen in alike([image.shape[:2] for image in images], WORKSPACE_PIXELS):
            sources = self._cv.as_images([images[n] for n in chosen], self._cv.Format.RGB8)
            targets = self._cv.as_images([slots[n] for n in chosen], self._cv.Format.RGB8)
            self._cv.pillowresize_into(targets, sources, self._interpolation, stream=self._stream)

    def _resize_and_crop(self, image, slot):
        tensor = self._cv.as_tensor(image, "HWC")
        height, width = tensor.shape[:2]
        target_width, target_height = self._spec.resized_size(width, height)
        tensor = self._cv.pillowresize(
            tensor,
            (target_height, target_width, 3),
            self._cv.Format.RGB8,
            self._interpolation,
            stream=self._stream,
        )
        side = self._spec.crop_size
        left, top = (target_width - side) // 2, (target_height - side) // 2
        rectangle = self._cv.RectI(left, top, side, side)
        target = self._cv.as_tensor(slot, "HWC")
        self._cv.customcrop_into(target, tensor, rectangle, stream=self._stream)

    def upload(self, pixels, slot):
        """Pixels of the reference path, uint8 ``[S, S, 3]``, into their slot."""
        source = nvimgcodec.as_image(np.ascontiguousarray(pixels))
        if self._device_id is not None:
            source = source.cuda(device_id=self._device_id, cuda_stream=self.stream_handle)
        side = self._spec.crop_size
        target = self._cv.as_tensor(slot, "HWC")
        whole = self._cv.RectI(0, 0, side, side)
        tensor = self._cv.as_tensor(source, "HWC")
        self._cv.customcrop_into(target, tensor, whole, stream=self._stream)
        return source

    def download(self, batch):
        """A :class:`Batch` as an array uint8 ``[B, S, S, 3]`` of the host, complete."""
        if self._device_id is None:
            return np.from_dlpack(batch.exported)
        interface = batch.exported.__cuda_array_interface__
        pixels = np.empty(interface["shape"], np.uint8)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        (status,) = self._cuda.cudaMemcpyAsync(
            pixels.ctypes.data, interface["data"][0], pixels.nbytes, kind, self.stream_handle
        )
        if int(status) != 0:
            raise RuntimeError(f"cudaMemcpyAsync: {status!r}")
        self.wait()
        return pixels

    def wait(self):
        """Until all that was asked for is done: Triton hands tensors on without our stream."""
        self._stream.sync()


class Batch:
    """Pixels uint8 ``[B, S, S, 3]`` on the GPU, without gaps, to be filled image by image.

    Args:
        tensor: of CV-CUDA; lives as long as this.
    """

    def __init__(self, tensor):
        self.exported = tensor.cuda()
        """Speaks DLPack; the tensor is CV-CUDA's again once nobody holds this object."""
        self._side = tensor.shape[1]
        self._address = self.exported.__cuda_array_interface__["data"][0]

    def slot(self, index):
        """The place of one image, uint8 ``[S, S, 3]``, as CV-CUDA takes foreign memory."""
        shape = (self._side, self._side, 3)
        return Slot(shape, self._address + index * shape[0] * shape[1] * 3)


class Slot:
    """Memory on the GPU by its address; CUDA array interface, version 3."""

    def __init__(self, shape, address):
        # Without a stream: nobody writes it but the one that is given with each operation.
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }


def alike(shapes, budget):
    """Group images so that a group's largest height times width, times its images, stays small.

    That is what CV-CUDA's resize allocates for a batch.

    Args:
        shapes: heights and widths.
        budget: pixels; an image beyond it is a group of its own.

    Yields:
        Indices, those of small images first.
    """
    chosen, height, width = [], 0, 0
    for index in sorted(range(len(shapes)), key=lambda n: shapes[n][0] * shapes[n][1]):
        height, width = max(height, shapes[index][0]), max(width, shapes[index][1])
        if chosen and height * width * (len(chosen) + 1) > budget:
            yield chosen
            chosen, (height, width) = [], shapes[index]
        chosen.append(index)
    if chosen:
        yield chosen
