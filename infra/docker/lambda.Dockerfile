# A function of AWS Lambda that streams (docs/aws-lambda.md). baked.Dockerfile adds the artifact.
# Both bases are given with their digests: infra/docker/README.md.
# BUILD_BASE: a Python with pip, and a C++ compiler for the native kernels, such as python:3.12-bookworm@sha256:...
ARG BUILD_BASE
# BASE: the same minor version of Python, such as python:3.12-slim-bookworm@sha256:...
ARG BASE

FROM ${BUILD_BASE} AS tree
WORKDIR /src
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY infra infra
COPY runtime runtime
COPY handlers handlers
COPY export export
RUN ["python3", "-m", "pip", "install", "--no-cache-dir", "--no-deps", "--require-hashes", "-r", "infra/locks/build.txt"]
# hadolint ignore=DL3059
RUN ["python3", "-m", "infra.shipping.image_root", "/app", "--variant", "cpu", "--no-build-isolation"]

FROM ${BASE} AS function
COPY --from=tree /app /app
# Only /tmp can be written there.
ENV PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp
# Another Python than the tree's ends the build here. Official images of Python have no bytecode of its own modules.
RUN ["python3", "-S", "-c", "import numpy, tokenizers, msgspec, onnxruntime, compileall, os, re, py_compile; compileall.compile_dir(os.path.dirname(os.__file__), quiet=2, rx=re.compile('/(test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pydoc_data|site-packages|dist-packages)/'), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"]
# SnapStart takes images with this label only.
LABEL com.amazonaws.lambda.feature.snapstart="Allow"
USER 65532:65532
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-S", "-m", "qwonnx.handlers.functions.lambda_runtime"]
