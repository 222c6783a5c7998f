PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test clean

demo: $(VENV)/demo
	rm -rf $(DEMO)
	$(BIN)/transfervae train --faces 3000 --image-size 64 --epochs 5 --out $(DEMO)

test: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/demo: $(VENV)/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[train,offline]'
	touch $@

$(VENV)/test: $(VENV)/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[train,offline,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs site
