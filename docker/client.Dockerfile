# syntax=docker/dockerfile:1
# The client and its commands (nima score, nima report): no torch, no CUDA, no server.
FROM python:3.12-slim

LABEL org.opencontainers.image.title="nima-triton client" \
      org.opencontainers.image.licenses="Apache-2.0"

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1

COPY docker/requirements-client.txt /tmp/requirements-client.txt
RUN python3 -m pip install -r /tmp/requirements-client.txt

COPY pyproject.toml README.md LICENSE NOTICE /opt/nima/
COPY client /opt/nima/client
COPY training /opt/nima/training
COPY build /opt/nima/build
COPY model_repository /opt/nima/model_repository
RUN python3 -m pip install --no-deps /opt/nima \
    && rm -r /opt/nima \
    && useradd --create-home --uid 1000 nima
USER 1000
WORKDIR /photos
ENTRYPOINT ["nima"]
CMD ["--help"]
