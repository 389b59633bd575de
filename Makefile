# Everything a new machine needs is Python >= 3.11, make and a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check unit docs bench gpu screenshot clean

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

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/site/build.py build/docs

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench --against transformers timm --out runs/bench

# All that there is to find out on a machine with a GPU; the PyTorch of PyPI for Linux is the one for CUDA.
gpu: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gpu --out runs/gpu

screenshot: $(VENV)/.installed
	$(BIN)/python tools/screenshot.py runs/demo/report.html docs/images/report.png --width 1000 --height 1240

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "beitkit needs Python 3.11 or newer; say make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,docs,onnx,parquet,ray]"
	# A referee in tests, under a stub of torchvision: with its dependencies, pip would replace the pinned PyTorch.
	$(BIN)/pip install -q --disable-pip-version-check --no-deps timm==1.0.31
	touch $@

clean:
	rm -rf $(VENV)
