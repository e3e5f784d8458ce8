# Everything starts from Python 3.11 and make: `make demo` or `make test`.
PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests

.PHONY: venv demo test test-slow lint tutorials clean

venv: .venv/.installed

.venv/.installed: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make venv PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: venv
	$(BIN)/pyro-cge demo --out demo

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m 'not slow' $(TESTS)

test-slow: venv
	$(BIN)/python -m pytest -q -m slow $(TESTS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pyro_cge

tutorials: venv
	$(BIN)/python tutorials/build.py

clean:
	rm -rf .venv build *.egg-info demo
