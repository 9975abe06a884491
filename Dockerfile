# syntax=docker/dockerfile:1
# dicomai in a container, for NVIDIA GPUs:
#     docker build -t dicomai .
# for the CPU, several GB less, where INDEX is PyTorch's CPU index:
#     docker build -t dicomai --build-arg TORCH_INDEX=INDEX .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Where the wheels of torch lie; empty: PyPI, whose own are for CUDA.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/dicomai
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN torch="$(grep '^torch==' constraints.txt)" \
    && /opt/dicomai/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
COPY config config
COPY migrations migrations
COPY dicomai dicomai
RUN /opt/dicomai/bin/pip install -c constraints.txt . \
    && /opt/dicomai/bin/dicomai --version

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="dicomai" \
      org.opencontainers.image.description="Puts AI models behind a PACS" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 dicomai \
    && useradd --system --uid 10001 --gid dicomai --no-create-home --home-dir /data dicomai \
    && install --directory --owner=dicomai --group=dicomai --mode=0750 /data
COPY --from=build /opt/dicomai /opt/dicomai
ENV PATH=/opt/dicomai/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DICOMAI_CONFIG=/data/dicomai.toml \
    DICOMAI_LOG__FORMAT=json
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 11112 2762
STOPSIGNAL SIGTERM
# Asks the receiver in this container for a C-ECHO; a container of another role says --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["dicomai", "echo"]
ENTRYPOINT ["dicomai"]
CMD ["serve"]
