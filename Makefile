# Everything a new machine needs is Python >= 3.11, make and a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check unit test-torch docs wheel-check bench gpu screenshot lock clean

demo: $(VENV)/.installed
	$(BIN)/beitkit demo --out runs/demo

test: check unit

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

# The numeric tests with another PyTorch, in an environment of its own: TORCH=2.10.0, the oldest that is promised, or TORCH=""
# for the newest. PyPI's builds for Linux bring CUDA's libraries with them, some gigabytes.
TORCH ?= 2.10.0
OTHER := build/torch-$(or $(TORCH),newest)
test-torch:
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install -q --disable-pip-version-check --upgrade "torch$(if $(TORCH),==$(TORCH))" -e ".[dev]"
	OMP_NUM_THREADS=1 $(OTHER)/bin/pytest -q tests/nn tests/objectives tests/train tests/interop

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/site/build.py build/docs

# The wheel, alone in an environment of its own, away from the clone: what somebody has who installs it without extras.
wheel-check:
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip wheel -q --disable-pip-version-check --no-deps -w build/wheel .
	build/wheel/venv/bin/pip install -q --disable-pip-version-check -c constraints.txt build/wheel/beitkit-*.whl
	cd build/wheel && PYTHONPATH= venv/bin/python "$(CURDIR)/tools/check_wheel.py"
	cd build/wheel && PYTHONPATH= venv/bin/beitkit demo --help >/dev/null
	@echo "the wheel works by itself; the whole demo: build/wheel/venv/bin/beitkit demo --out build/wheel/demo"

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench --against transformers timm --out runs/bench

# All that there is to find out on a machine with a GPU; the PyTorch of PyPI for Linux is the one for CUDA.
gpu: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gpu --out runs/gpu

screenshot: $(VENV)/.installed
	$(BIN)/python tools/screenshot.py runs/demo/report.html docs/images/report.png --width 1000 --height 1240

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "beitkit needs Python 3.11 or newer; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

# What CI runs is what was reviewed: every file is known by its hash, pip resolves nothing, and nothing is built but the clone itself.
# PyTorch alone is known by its version only (requirements-ci.txt says why); it comes second, so that what it needs is there. timm, a
# referee in tests, runs under a stub of torchvision, which would replace the pinned PyTorch; so pip need not warn that it is missing.
$(VENV)/.installed-dev: pyproject.toml constraints.txt requirements-ci.txt | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r requirements-ci.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-warn-conflicts -r constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(VENV)/.installed $@

# Renews requirements-ci.txt where pyproject.toml changed, UPGRADE=1 to the newest of all; needs uv (pip install uv).
lock:
	$(PYTHON) tools/lock.py $(if $(UPGRADE),--upgrade)

clean:
	rm -rf $(VENV)
