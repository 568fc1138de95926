# Two commands: `make run` starts the service on this machine, `make test` checks it.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)

export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: run test test-frontend test-python format lock bench

run: $(VENV)/installed
	@$(VENV)/bin/python app.py

# Where Python may not write bytecode, each of the many processes would compile all modules again.
test: export PYTHONDONTWRITEBYTECODE =
# `make test TESTS=tests` runs all tests.
test: export TESTS ?= --quick tests/unit tests/service tests/docs
test: $(VENV)/installed-dev frontend/node_modules/installed .openai-chatkit/downloaded
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	@$(MAKE) --no-print-directory --jobs=2 test-frontend test-python

test-frontend:
	cd frontend && npm test

test-python:
	$(VENV)/bin/pytest --numprocesses=auto $(TESTS)

format: $(VENV)/installed-dev frontend/node_modules/installed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	cd frontend && npm run format

lock: $(VENV)/installed-dev
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
		pyproject.toml --output-file requirements.txt
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
		pyproject.toml --group dev --constraint requirements.txt --output-file requirements-dev.txt

bench: $(VENV)/installed-dev
	$(VENV)/bin/python -m bench.sessions
	$(VENV)/bin/python -m bench.guards
	$(VENV)/bin/python -m bench.streams
	$(VENV)/bin/python -m bench.history

# Node.js is a wheel among the requirements, so that all machines have the same.
frontend/node_modules/installed: frontend/package-lock.json | $(VENV)/installed-dev
	cd frontend && npm ci --no-audit --no-fund
	@touch $@

# OpenAI's tests of its package come with the source distribution only.
.openai-chatkit/downloaded: requirements.txt | $(VENV)/bin/python
	@rm -rf $(@D)
	@$(VENV)/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary openai-chatkit \
		--dest $(@D) "$$(grep ^openai-chatkit== requirements.txt)"
	@tar -xzf $(@D)/openai_chatkit-*.tar.gz -C $(@D)
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 is needed, and none is on the PATH." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# pip itself would compile on one processor.
define install
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile --requirement $<
	@$(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib || true
	@touch $@
endef

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	@echo "Installing the requirements into $(VENV), once; this takes about half a minute."
	$(install)

$(VENV)/installed-dev: requirements-dev.txt | $(VENV)/bin/python
	@echo "Installing the development requirements into $(VENV), once; this takes a minute or two."
	$(install)
