# One image for the broker and for its NATS server: the server's binary is a locked dependency, so the version that runs is
# the version that was tested.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
RUN python -m venv /opt/remit
COPY locks locks
# Every file is checked against its hash, and what exists as source only is built with locked tools.
RUN /opt/remit/bin/pip install --no-cache-dir --no-deps --require-hashes -r locks/build.txt \
 && /opt/remit/bin/pip install --no-cache-dir --no-deps --require-hashes --no-build-isolation -r locks/runtime.txt
COPY . .
RUN /opt/remit/bin/pip install --no-cache-dir --no-deps --no-build-isolation ./agents_sdk . \
 && /opt/remit/bin/pip check

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/remit /opt/remit
COPY deploy/prepare.py deploy/probe.py /opt/remit/share/
ENV PATH=/opt/remit/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A new named volume takes its owner from the folder it is mounted on.
RUN useradd --system --uid 10001 --user-group remit \
 && install -d -o remit -g remit -m 0700 /var/lib/remit /var/lib/remit/1 /var/lib/remit/2 /var/lib/nats /var/lib/jaeger \
 && install -d -o remit -g remit -m 0755 /etc/nats
USER remit
WORKDIR /var/lib/remit
ENTRYPOINT ["remit"]
CMD ["up"]
