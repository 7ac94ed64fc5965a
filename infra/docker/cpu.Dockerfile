# A server on CPUs. The artifact is mounted, by the platform or by you (QWONNX_ARTIFACT), or added by baked.Dockerfile.
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

FROM ${BASE} AS server
COPY --from=tree /app /app
# PORT makes `auto` listen on all addresses where no other platform is found. A key is needed then: QWONNX_API_KEY.
ENV PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    PORT=8080 \
    QWONNX_PLATFORM=auto
# Another Python than the tree's ends the build here. Official images of Python have no bytecode of its own modules.
RUN ["python3", "-S", "-c", "import numpy, tokenizers, msgspec, onnxruntime, compileall, os, re, py_compile; compileall.compile_dir(os.path.dirname(os.__file__), quiet=2, rx=re.compile('/(test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pydoc_data|site-packages|dist-packages)/'), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"]
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s --retries=3 \
    CMD ["python3", "-I", "-S", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('PORT', '8080') + '/health/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-S", "-m", "qwonnx.handlers.cli"]
CMD ["serve"]
