# sprat on a CPU: `docker build --tag sprat .`, then `docker run -p 8000:8000 sprat` serves a page.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
COPY constraints.txt /
COPY --from=build /wheels /wheels
# torch's builds for CPUs, 2.13.0+cpu, are preferred to those with CUDA, which take several GB
RUN python -m pip install --no-cache-dir --constraint /constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu \
        "$(find /wheels -name '*.whl')[serve]" \
    && useradd --create-home --uid 1000 sprat
USER sprat
WORKDIR /home/sprat
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["sprat"]
CMD ["serve", "--host", "0.0.0.0"]
