# syntax=docker/dockerfile:1
# The server as an image: docs/image.md says how it is built and run.
#   docker build --build-arg BASE=python:3.13-slim --tag marqo-inference .

# Any Debian with Python 3.11 to 3.14, or any image of such a Python on Debian.
ARG BASE=python:3.13-slim

# --- What Debian has to give: bash and wget (the probes of KubeRay), Python, and the user. ---
# hadolint ignore=DL3006
FROM ${BASE} AS system
COPY operations/image/install /tmp/install
RUN ["/tmp/install", "system"]

# --- The packages of the registry, which change seldom, for one variant. ---
FROM system AS packages
# cuda: torch with CUDA's libraries, which computes on CPUs too. cpu: none of them, if pip's index has such a torch.
ARG VARIANT=cuda
# Of pyproject.toml: ONNX graphs, models in S3.
ARG EXTRAS=onnx,s3
COPY pyproject.toml /tmp/project/
# The settings of pip, such as an index of one's own and its certificate authority, are secrets, and in no layer.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=authorities,target=/run/secrets/authorities \
    /tmp/install packages "${VARIANT}" "${EXTRAS}"

# --- This project, compiled. ---
FROM packages AS project
COPY graph.py /opt/marqo/app/
COPY config /opt/marqo/app/config
COPY embedding /opt/marqo/app/embedding
COPY deployments /opt/marqo/app/deployments
COPY operations /opt/marqo/app/operations
RUN ["/tmp/install", "project"]

# --- The image. ---
FROM system AS server
COPY --from=packages /opt/marqo/venv /opt/marqo/venv
COPY --from=project /opt/marqo/app /opt/marqo/app

# What `python -m operations.launch --environment` prints, so that a `ray start` in this image has it too. The root filesystem may be
# read-only: what is written goes to /tmp, /dev/shm and the folder of models.
ENV PATH=/opt/marqo/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp/home \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MARQO_MODEL_CACHE_PATH=/var/lib/marqo/models \
    MARQO_PYTHON=/opt/marqo/venv/bin/python \
    MARQO_HAPROXY_BINARY=/opt/marqo/venv/bin/haproxy \
    RAY_SERVE_HAPROXY_BINARY_PATH=/opt/marqo/app/operations/haproxy/wrapper \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_THROUGHPUT_OPTIMIZED=1 \
    RAY_SERVE_CONTROL_LOOP_INTERVAL_S=0.5 \
    RAY_worker_niceness=0 \
    RAY_health_check_period_ms=1000 \
    RAY_health_check_failure_threshold=3 \
    RAY_health_check_timeout_ms=5000 \
    RAY_grpc_client_keepalive_timeout_ms=5000 \
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 \
    no_grpc_proxy=localhost,0.0.0.0/0,::/0 \
    OMP_WAIT_POLICY=PASSIVE \
    RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_HAPROXY_RETRY_ON="conn-failure empty-response" \
    RAY_SERVE_HAPROXY_TUNE_BUFSIZE=262144 \
    RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S=2 \
    RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=1 \
    RAY_SERVE_HAPROXY_MAXCONN=32768 \
    RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S=60 \
    no_proxy=localhost,127.0.0.1,::1 \
    NO_PROXY=localhost,127.0.0.1,::1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Of embedding/version.py.
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="marqo-ray-inference" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"

WORKDIR /opt/marqo/app
USER 1000:1000
VOLUME ["/tmp", "/var/lib/marqo/models"]
EXPOSE 8881
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --retries=3 \
    CMD ["wget", "--quiet", "--output-document=/dev/null", "http://127.0.0.1:8881/healthz"]
ENTRYPOINT ["/opt/marqo/app/operations/image/entrypoint"]
CMD ["python", "-m", "operations.launch", "--host", "0.0.0.0", "config/serve.yaml"]
