# The relay on a slim Python. Another base: --build-arg PYTHON_IMAGE=python:3.12-slim
# For STORE_URL=valkey://..., the one package more: --build-arg LOCKS="requirements.lock requirements-valkey.lock"
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ARG LOCKS=requirements.lock
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
RUN python -m venv --without-pip /venv && mkdir /data
COPY requirements*.lock /
RUN for lock in ${LOCKS}; do python -m pip --python /venv/bin/python install --no-cache-dir --no-compile \
    --only-binary :all: --require-hashes -r "/${lock}" || exit 1; done
# What uvicorn[standard] brings for WebSockets, --reload and --log-config, and uvloop's 12 MB of debug symbols.
RUN python -m pip --python /venv/bin/python uninstall --yes watchfiles websockets pyyaml \
    && find /venv -name '*.so' -exec strip --strip-unneeded {} +
COPY *.py openapi.json pyproject.toml LICENSE /app/
COPY api /app/api
COPY serving /app/serving
COPY stores /app/stores
COPY upstream /app/upstream
# The root file system is read-only later: bytecode is made now, and not held against the time of its source.
RUN python -m compileall -q --invalidation-mode unchecked-hash /venv/lib /app

FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="chat-relay" \
      org.opencontainers.image.description="A relay between chat front ends and OpenRouter, over Server-Sent Events" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
COPY --from=build /venv /venv
COPY --from=build /app /app
COPY --from=build --chown=10001:10001 /data /data
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 PORT=8001
USER 10001:10001
EXPOSE 8001
STOPSIGNAL SIGTERM
# Not urllib, which would ask a proxy of the environment. 503, while draining, counts as unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
relay = http.client.HTTPConnection('localhost', os.environ['PORT'], timeout=4); \
relay.request('GET', '/health'); \
sys.exit(relay.getresponse().status != 200)"]
ENTRYPOINT ["python", "server.py"]
