# syntax=docker/dockerfile:1
# The base image brings Python, torch 2.13.0, torchvision 0.28.0 and CUDA; locks/serve.txt brings everything else.
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime

# Lensgate and what it needs go into one folder of their own, which comes first in the import path. So nothing is assumed of the image's
# Python but that `python3` has pip and torch: it may be the system's (externally managed), conda's or a virtual environment's.
FROM ${BASE} AS build
ENV UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY locks/build.txt locks/serve.txt locks/
RUN python3 -m pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: --target /build -r locks/build.txt \
    && /build/bin/uv pip install --python python3 --target /opt/lensgate --require-hashes --no-deps --only-binary :all: -r locks/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY security security
COPY inference inference
RUN PYTHONPATH=/build /build/bin/uv pip install --python python3 --target /opt/lensgate --no-deps --no-build-isolation .
COPY deploy/healthcheck.py /opt/lensgate/bin/healthcheck

FROM ${BASE}
LABEL org.opencontainers.image.title="Lensgate" \
      org.opencontainers.image.description="An authenticated, bounded, observable HTTP API for image classification" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/lensgate /opt/lensgate
# A user of our own by number, so that Kubernetes can see that it is not root. /data holds all that is written: database, keys, weights.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /data
ENV PATH=/opt/lensgate/bin:${PATH} \
    PYTHONPATH=/opt/lensgate \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    LENSGATE_HTTP__HOST=0.0.0.0
WORKDIR /data
VOLUME /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["healthcheck"]
ENTRYPOINT ["lensgate"]
CMD ["serve"]
