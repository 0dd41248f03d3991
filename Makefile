# Two commands on a fresh machine: `make demo` streams an answer, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-clients lint types format clean

# The stamps make each environment once and again whenever what it installs changes.
$(VENV)/.run: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mlx-gptoss needs Python 3.11 or newer; run: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install -q --disable-pip-version-check --group dev
	touch $@

demo: $(VENV)/.run
	$(BIN)/mlx-gptoss generate --model demo --temperature 0 --stats "What is 17 + 25?"

test: $(VENV)/.dev lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not clients and not metal and not cuda"

# Client libraries pin what they like, so they get an environment of their own.
$(VENV)-clients/.done: tests/clients/requirements.txt
	test -x $(VENV)-clients/bin/python || $(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install -q --disable-pip-version-check -r tests/clients/requirements.txt
	touch $@

test-clients: $(VENV)/.run $(VENV)-clients/.done
	MLX_GPTOSS_COMMAND=$(BIN)/mlx-gptoss $(VENV)-clients/bin/python -m pytest tests/clients -m clients -o filterwarnings=default

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
