# Python for building and running: one version, to be raised on purpose. Pin it by digest where your
# rules ask for that: --build-arg PYTHON=python:3.12.11-slim-bookworm@sha256:…
ARG PYTHON=python:3.12.11-slim-bookworm

# The browser client, which the daemon serves.
FROM node:22.17.0-bookworm-slim AS client
WORKDIR /build/clients/typescript
COPY clients/typescript/package.json clients/typescript/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY clients/typescript ./
RUN npm run build && npm run vendor

FROM ${PYTHON} AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY messagebusd messagebusd
COPY --from=client /build/messagebusd/browser messagebusd/browser
# An environment without pip: nothing is installed into it later.
RUN python -m venv --without-pip /opt/messagebusd \
    && pip --python /opt/messagebusd/bin/python install --no-cache-dir .

FROM ${PYTHON}
# The system's files are not ours to write, and no package manager of Python's is needed any more.
RUN pip uninstall --yes --root-user-action=ignore pip \
    && useradd --system --uid 10001 --home-dir /var/lib/messagebusd --create-home messagebusd
COPY --from=build /opt/messagebusd /opt/messagebusd
ENV PATH=/opt/messagebusd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MESSAGEBUSD_SERVER__LISTEN=0.0.0.0:8090 \
    MESSAGEBUSD_SERVER__INTERNAL_LISTEN=0.0.0.0:8091 \
    MESSAGEBUSD_LOG__FORMAT=json
USER 10001
# For backend.memory.snapshot_file; otherwise nothing is written, and a read-only file system will do.
WORKDIR /var/lib/messagebusd
EXPOSE 8090 8091
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8091/readyz', timeout=6)"]
# The API listens on every interface here, so it needs a key: MESSAGEBUSD_API__KEY or
# MESSAGEBUSD_API__KEY_FILE. SIGTERM drains; give it longer than server.shutdown_timeout:
# docker stop --time 45.
STOPSIGNAL SIGTERM
ENTRYPOINT ["messagebusd"]
CMD ["serve"]
