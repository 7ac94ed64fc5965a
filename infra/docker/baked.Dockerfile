# An image with its artifact, which is a layer of its own. The context is the artifact's folder:
#   docker build -f infra/docker/baked.Dockerfile --build-arg IMAGE=qwonnx:cpu -t qwonnx:qwen-int4 qwen-int4
# IMAGE: one that cpu.Dockerfile, cuda.Dockerfile or lambda.Dockerfile made.
ARG IMAGE
FROM ${IMAGE}
COPY . /artifact
ENV QWONNX_ARTIFACT=/artifact
