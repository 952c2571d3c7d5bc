# make sweep: the quickstart, set-up included.  make test: the tests, set-up included.
# make test-cluster: a cluster of machines made out of this one; needs root, and openssh-server and rsync.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: install sweep test test-cluster lint bench clean

install: $(READY)

$(READY): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	# in a second step: pip's search for versions that go with all of [dev] at once takes long
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[hf,tensorboard]'
	touch $@

sweep: $(READY)
	$(VENV)/bin/python -m raysweep.grid $(ARGS)

test: $(READY)
	$(VENV)/bin/python -m pytest $(ARGS)

test-cluster: $(READY)
	$(VENV)/bin/python -m pytest tests/cluster/end_to_end.py $(ARGS)

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
