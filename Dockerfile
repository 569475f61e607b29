# The browser client, which the daemon serves.
FROM node:20-slim AS client
WORKDIR /build/clients/typescript
COPY clients/typescript/package.json clients/typescript/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY clients/typescript ./
RUN npm run build && npm run vendor

FROM python:3.12-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY messagebusd messagebusd
COPY --from=client /build/messagebusd/browser messagebusd/browser
RUN python -m venv /opt/messagebusd && /opt/messagebusd/bin/pip install --no-cache-dir .

FROM python:3.12-slim
RUN useradd --system --home-dir /var/lib/messagebusd --create-home messagebusd
COPY --from=build /opt/messagebusd /opt/messagebusd
ENV PATH=/opt/messagebusd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MESSAGEBUSD_SERVER__LISTEN=0.0.0.0:8090 \
    MESSAGEBUSD_SERVER__INTERNAL_LISTEN=0.0.0.0:8091
USER messagebusd
WORKDIR /var/lib/messagebusd
EXPOSE 8090 8091
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8091/readyz', timeout=2)"]
# The API listens on every interface here, so it needs a key: MESSAGEBUSD_API__KEY or
# MESSAGEBUSD_API__KEY_FILE. SIGTERM drains; give it longer than server.shutdown_timeout.
STOPSIGNAL SIGTERM
ENTRYPOINT ["messagebusd"]
CMD ["serve"]
