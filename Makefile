# `make demo` and `make test` do everything on a fresh machine: they need Python 3.11 or later, make, and PyPI.

PYTHON ?= python3
# For a CPU build of torch on a Linux machine with NVIDIA's index as the default, for example:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# How long `make fuzz` takes for each reader.
SECONDS_EACH ?= 300

VENV := .venv
READY := $(VENV)/.ready
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: setup demo test pytest quality lint docs release-check fuzz audit clean

setup: $(READY)

$(READY): pyproject.toml constraints/tested.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch, diffusers and the rest into $(VENV): 0.8 GB with the CPU build of torch, 5.8 GB with CUDA's."
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) install -c constraints/tested.txt -e '.[dev]'
	touch $@

demo: setup
	$(VENV)/bin/unziplora demo --force

# mypy runs beside the tests, which it would hold up for a minute.
test: setup
	$(MAKE) -j 2 lint pytest

pytest: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

quality: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/quality.py --quick

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The documentation as a site in site/, which loads nothing from other hosts.
docs: setup
	$(VENV)/bin/python -m scripts.reference
	$(VENV)/bin/zensical build --clean --strict
	@echo "Open site/index.html, or with search: $(VENV)/bin/python -m http.server --directory site"

# Wheel and sdist built, and installed by uv, pipx and pip on the lowest and the newest Python; the demo; licences; sizes.
release-check: setup
	$(PIP) install -q -c constraints/tested.txt pipx==1.18.4 uv==0.13.9
	$(VENV)/bin/python -m scripts.release dist

# Coverage-guided fuzzing of every reader; what it finds is in .fuzz/findings.
fuzz: setup
	$(PIP) install -q atheris
	$(VENV)/bin/python -m tests.fuzz.run --seconds $(SECONDS_EACH) .fuzz

# Known advisories of the pinned versions.
audit:
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip --disable-pip-version-check install -q pip-audit
	.audit/bin/pip-audit --strict --vulnerability-service pypi --no-deps --disable-pip -r constraints/tested.txt

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .audit site
