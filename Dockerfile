FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
# What is downloaded comes before the code, so that a change of code downloads nothing. The build
# backend is the part of the development pins that hatchling needs; a part missing is refused.
COPY requirements.txt requirements-dev.txt ./
RUN awk '/^[^ #]/ {wanted = /^(hatchling|packaging|pathspec|pluggy|trove-classifiers)==/} wanted' \
        requirements-dev.txt > requirements-backend.txt \
    && python -m venv --without-pip /opt/backend \
    && pip --python /opt/backend install --require-hashes -r requirements-backend.txt \
    && python -m venv --without-pip /opt/ingester \
    && pip --python /opt/ingester install --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY ingester ingester
RUN pip --python /opt/backend wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/ingester install --no-deps --no-index dist/*.whl


FROM python:3.13-slim
LABEL org.opencontainers.image.title="pacspace-ingester" \
      org.opencontainers.image.description="Reads usage events from Kafka, settles them with PacSpace, commits offsets only after the acknowledgement." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin ingester
COPY --from=build /opt/ingester /opt/ingester
ENV PATH=/opt/ingester/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    INGESTER_HTTP_LISTEN=0.0.0.0:8080
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# http.client, because urllib would ask the proxy that an environment may name.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1:' + os.environ['INGESTER_HTTP_LISTEN'].rpartition(':')[2], timeout=2); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["ingester"]
CMD ["run"]
