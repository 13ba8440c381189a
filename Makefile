# `make demo` and `make test` do all the set-up on a fresh machine, and do nothing twice.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow docs clean

demo: .venv/demo-installed
	$(BIN)/ddim demo --force

test: .venv/test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -n auto

slow: .venv/test-installed
	$(BIN)/pytest -n auto -m slow

docs: .venv/docs-installed
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

.venv/demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[all]' -c constraints.txt || { \
	  echo "ncnn and OpenVINO cannot be had here: torch runs the network"; \
	  $(BIN)/python -m pip install --quiet --editable '.[plot,tensorboard,data,ode,onnx,web,hub]' \
	    -c constraints.txt; }
	touch $@

.venv/test-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $@ .venv/demo-installed

.venv/docs-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[docs]' -c constraints.txt
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build src/*.egg-info
