#!/bin/sh
# Makes .venv, and the Python code of the contract in gen/. `weft up` runs it before it starts anything.
set -eu

# Only if the requirements have changed since the last time.
if [ ! -e .venv/installed ] || [ requirements.txt -nt .venv/installed ]; then
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
  touch .venv/installed
fi

mkdir -p gen
.venv/bin/python -m grpc_tools.protoc --proto_path=proto --python_out=gen --pyi_out=gen --grpc_python_out=gen \
  $(cd proto && find . -name '*.proto' | sed 's|^\./||')
