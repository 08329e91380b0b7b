# `make demo` and `make test` do all the set-up on a fresh machine.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-wide check bench clean

demo: $(INSTALLED)
	$(BIN)/whitediff demo --output demo-output --overwrite

# Side by side, file by file: two processes of few threads take less time than one of many.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not wide"

# Butlers, clusters, thousands of sources: what takes longest.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not wide"

# All further seeds and kinds of fields: an hour or two, before a release.
test-wide: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m wide

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

check: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# A candidate counts when it runs: version managers put names on the PATH that do not.
$(BIN)/python:
	@for candidate in python3.13 python3.12 python3; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
	        echo "Setting up $(VENV) with $$candidate"; \
	        if $$candidate -m venv $(VENV); then exit 0; fi; \
	        rm -rf $(VENV); \
	        echo "$$candidate cannot make a virtual environment; install its venv module (on Debian: apt install python3-venv) and run make again." >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "whitediff needs Python 3.12 or newer, and none of python3.13, python3.12, python3 on the PATH is; install one and run make again." >&2; \
	exit 1

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[align,plot,piff,remote,survey,rubin,test]'
	@touch $@

clean:
	rm -rf $(VENV) demo-output benchmark-output build .mypy_cache .pytest_cache .ruff_cache
