PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test test-quick clean

demo: $(VENV)/demo
	rm -rf $(DEMO)
	$(BIN)/transfervae train --dataset.faces 3000 --image-size 64 --epochs 20 --out $(DEMO)/faces
	$(BIN)/python examples/photographs.py $(DEMO)
	$(BIN)/transfervae train $(DEMO)/pieces --image-size 64 --epochs 20 --out $(DEMO)/photographs
	$(BIN)/transfervae reconstruct $(DEMO)/photographs $(DEMO)/held --out $(DEMO)/photographs.png
	@echo "Look at $(DEMO)/faces/reconstructions.png and at $(DEMO)/photographs.png: originals above reconstructions."

test: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# For while one works: without real processes, whole trainings and other libraries' networks.
test-quick: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/pytest -m "not slow"

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/demo: $(VENV)/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[train,offline]' scikit-image
	touch $@

$(VENV)/test: $(VENV)/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[train,offline,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs site
