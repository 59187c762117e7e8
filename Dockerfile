# One image for CPU and GPU. From the repository's root:
#
#     docker build -t parakeet-ray-serve .
#     docker run --rm --shm-size 2g --stop-timeout 660 -p 127.0.0.1:8000:8000 -v parakeet-models:/models parakeet-ray-serve
#
# It also runs as another user (--user) and read-only (--read-only, with a volume for /tmp): docs/deploy.md.
#
# On a machine with NVIDIA GPUs add `--gpus all`; models then run on them. torch as published on PyPI is the CUDA build (x86:
# several GB) and runs on CPUs too. For a smaller image without CUDA, or for another CUDA version, name the index of PyTorch's own
# wheels: `--build-arg PIP_EXTRA_INDEX_URL=...`. pip prefers that build of the pinned version.
#
# BASE may be any Debian-based image with Python 3.11.4 to 3.13 as `python`.
ARG BASE=python:3.11-slim

# The dependencies in a separate file, so that an edit elsewhere in pyproject.toml does not install them again.
FROM ${BASE} AS requirements
WORKDIR /requirements
COPY pyproject.toml .
RUN python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *(d for extra in ("tracing", "postgres") for d in p["optional-dependencies"][extra]), sep="\n")' >requirements.txt

FROM ${BASE}

# gcc, libc6-dev: Triton compiles a part of itself when NeMo first uses it on a GPU. tini: reaps child processes that Ray leaves.
# wget: the health probes of KubeRay, Ray's operator for Kubernetes, run it. Versions are not pinned: Debian drops old ones.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev tini wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt .
COPY --from=requirements /requirements/requirements.txt .
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check --root-user-action=ignore -c constraints.txt -r requirements.txt

# Models and other downloads of huggingface_hub are stored in /models. The entrypoint gives appuser the ids PUID and PGID.
ENV MODELS_DIR=/models HF_HOME=/models/hub
RUN useradd --create-home --non-unique --uid 1000 --user-group appuser && mkdir /models && chown appuser:appuser /models
VOLUME /models

COPY LICENSE NOTICE ./
COPY deploy/entrypoint.sh /usr/local/bin/entrypoint
COPY configs configs
COPY serve_app serve_app

# Ray's object store is in /dev/shm, which Docker limits to 64 MB by default: hence --shm-size, a little above this limit. With
# less room there, Ray uses /tmp instead, which is slower. A window in flight (32 s of int16 audio at 16 kHz) takes 1 MB of it.
ENV PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=1500000000 \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 \
    RAY_USAGE_STATS_ENABLED=0

EXPOSE 8000
# The check bypasses a proxy that is set for downloads. PORT is where the server listens, 8000 unless set.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:{}/health'.format(os.environ.get('PORT') or 8000), timeout=4)"]
ENTRYPOINT ["tini", "--", "/usr/local/bin/entrypoint"]
# `serve run` that lets requests in progress finish when the container is stopped.
CMD ["python", "-m", "serve_app.run", "configs/container.yaml"]
