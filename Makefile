# make finetune   set up and fine-tune the embedded demo
# make test       set up and run the tests
# make check      format, lint, types, import rules
# make lock       pin the newest compatible versions of all packages

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV_PYTHON := .venv/bin/python
INSTALLED := .venv/installed.lock

.PHONY: finetune test test-slow check lock demo clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

finetune: $(INSTALLED)
	$(VENV_PYTHON) run.py --pipeline finetune

# An idle OpenMP thread that spins would take its core from the other process.
test: $(INSTALLED)
	OMP_WAIT_POLICY=PASSIVE $(VENV_PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu"

test-slow: $(INSTALLED)
	$(VENV_PYTHON) -m pytest -m "slow and not gpu"

check: $(INSTALLED)
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy
	.venv/bin/lint-imports

# The lock has every package with its hashes; a second call installs nothing.
$(INSTALLED): requirements.lock
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; name one: make PYTHON=/path/to/python3.12"; exit 2; }
	test -x $(VENV_PYTHON) || $(PYTHON) -m venv .venv
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check uv
	$(VENV_PYTHON) -m uv pip sync --quiet --python $(VENV_PYTHON) --require-hashes requirements.lock
	cp requirements.lock $(INSTALLED)

lock: $(INSTALLED)
	$(VENV_PYTHON) -m uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade --quiet \
		--output-file requirements.lock
	$(MAKE) $(INSTALLED)
	$(VENV_PYTHON) scripts/list_forwarded_options.py

demo: $(INSTALLED)
	$(VENV_PYTHON) demo/draw_catalog.py
	$(VENV_PYTHON) demo/pretrain_base.py

clean:
	rm -rf .venv runs .vlmtune
