# syntax=docker/dockerfile:1
# Two images: `--target control-plane` (web, celery, beat, migrate; no torch) and `--target worker`.

ARG PYTHON_IMAGE=python:3.13-slim-trixie
# FlashInfer compiles its kernels on first use: for EXTRAS=gpu choose a base that has Python 3.11+ and the CUDA toolkit.
ARG WORKER_IMAGE=python:3.13-slim-trixie

FROM node:24-trixie-slim AS frontend
WORKDIR /src/frontend
COPY frontend/package.json frontend/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY frontend/ ./
RUN npm run build

FROM ${PYTHON_IMAGE} AS control-plane-packages
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY deploy/requirements.py deploy/
RUN python -m venv /venv \
    && python deploy/requirements.py control-plane > requirements.txt \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r requirements.txt

FROM ${WORKER_IMAGE} AS worker-packages
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY deploy/requirements.py deploy/
# EXTRAS is a list of words.
# hadolint ignore=SC2086
RUN python3 -m venv /venv \
    && python3 deploy/requirements.py worker ${EXTRAS} > requirements.txt \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r requirements.txt

FROM ${PYTHON_IMAGE} AS control-plane
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin tidegate
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=control-plane-packages /venv /venv
COPY manage.py ./
COPY scheduler_worker/__init__.py scheduler_worker/
COPY scheduler_worker/core scheduler_worker/core
COPY scheduler_worker/protocol scheduler_worker/protocol
COPY scheduler_worker/sim scheduler_worker/sim
COPY controlplane controlplane
COPY --from=frontend /src/frontend/dist frontend/dist
USER 10001
EXPOSE 8000
# Without the bound, one open websocket keeps a stopping process alive until it is killed.
CMD ["python", "-m", "uvicorn", "controlplane.asgi:application", "--host", "0.0.0.0", "--port", "8000", \
     "--timeout-graceful-shutdown", "20"]

FROM ${WORKER_IMAGE} AS worker
# Triton compiles small launchers with the system's C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin tidegate
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=worker-packages /venv /venv
COPY scheduler_worker scheduler_worker
COPY deploy/worker_health.py deploy/
ENV PYTHONPATH=/app
USER 10001
CMD ["python", "-m", "scheduler_worker.worker"]
