# docker build --target installer -t manor-installer .    what manifests/installer.yaml runs on a node
# docker build --target node -t manor-node .              kind's node image with Manor in it

ARG KIND_NODE=kindest/node:v1.34.0

FROM debian:12-slim AS installer
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-jeepney \
 && mkdir /manor && cp -R /usr/lib/python3/dist-packages/jeepney /manor/ \
 && rm -rf /var/lib/apt/lists/*
COPY runtime /manor/runtime
COPY shim /manor/shim
COPY manifests/install.sh /manor/install.sh
ENTRYPOINT ["/manor/install.sh"]

FROM ${KIND_NODE} AS node
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-jeepney libseccomp2 \
 && rm -rf /var/lib/apt/lists/*
COPY runtime /opt/manor/runtime
COPY shim /opt/manor/shim
RUN cd /opt/manor && python3 -m shim.install /usr/local/bin
