# logitstore in a container, for the CPU unless TORCH says otherwise. docs/guides/installing.md explains the arguments.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# Extras of pyproject.toml, and the build of PyTorch. Its CPU index is the address to pass as PIP_EXTRA_INDEX_URL.
ARG EXTRAS=torch,plots,remote
ARG TORCH=torch==2.13.0+cpu
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/logitstore
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY logitstore logitstore
COPY storage storage
COPY pipeline pipeline
COPY cli cli
RUN /opt/logitstore/bin/pip install --constraint constraints.txt "${TORCH}" ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
# Stores and models of a mounted folder belong to this user, or to that of `docker run --user`.
RUN useradd --uid 1000 --create-home logitstore && install --directory --owner logitstore /work
COPY --from=build /opt/logitstore /opt/logitstore
ENV PATH=/opt/logitstore/bin:${PATH} PYTHONDONTWRITEBYTECODE=1
USER logitstore
WORKDIR /work
ENTRYPOINT ["logitstore"]
CMD ["--help"]
