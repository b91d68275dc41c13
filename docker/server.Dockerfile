# syntax=docker/dockerfile:1
# The server with everything the profiles default and cpu need; dali needs only the base image.
#
# What the base image holds (its release notes; an engine fits this TensorRT and no other):
#   Triton 2.59.0, CUDA 12.9.1, TensorRT 10.11.0.33, DALI 1.49.0, ONNX Runtime 1.22.0, Python 3.12,
#   Ubuntu 24.04
#   driver: 575 or later; on data-centre GPUs also R470 (470.57), R525 (525.85), R535 (535.86),
#   R545 (545.23), by CUDA's forward compatibility. Compute capability 7.5 or later.
ARG TRITON_TAG=25.06-py3
FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}

LABEL org.opencontainers.image.title="nima-triton server" \
      org.opencontainers.image.licenses="Apache-2.0"

# The image's Python is Triton's own: packages go where the Python backend looks for them.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

COPY docker/requirements-server.txt /tmp/requirements-server.txt
RUN python3 -m pip install -r /tmp/requirements-server.txt

COPY pyproject.toml README.md LICENSE NOTICE /opt/nima/
COPY client /opt/nima/client
COPY training /opt/nima/training
COPY build /opt/nima/build
COPY model_repository /opt/nima/model_repository
# Its dependencies are pinned above; torch is not among them.
RUN python3 -m pip install --no-deps /opt/nima

# 1000 is the user triton-server of the base image. The repository is its, since the engine is written there.
RUN mkdir /models \
    && cp -r /opt/nima/model_repository/. /models/ \
    && chown -R 1000:1000 /models
COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/nima-entrypoint
USER 1000:1000
WORKDIR /models

# glibc's malloc keeps a photo's buffers: see nima_build/server/_arguments.py. ONNX Runtime reports to
# its maker unless told not to.
ENV ORT_DISABLE_TELEMETRY=1 \
    NIMA_MODEL_REPOSITORY=/models \
    NIMA_PROFILE=default \
    MALLOC_MMAP_THRESHOLD_=33554432 \
    MALLOC_TRIM_THRESHOLD_=67108864
EXPOSE 8000 8001 8002
# An inference: Triton's own health stays green with a dead Python model.
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 \
    CMD ["nima-entrypoint", "health"]
ENTRYPOINT ["nima-entrypoint"]
CMD ["serve"]
