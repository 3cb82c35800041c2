# Everything is set up by the target that needs it: a virtual environment in .venv, installs from the package index,
# then the work. Needs only make and a Python >= 3.11; choose one with `make demo PYTHON=/path/to/python3`.
# Works with GNU make 3.81 (macOS) and later. On Linux, BACKEND=cuda13 (or cuda12) runs MLX on an NVIDIA GPU.

VENV := .venv
BIN := $(VENV)/bin
BACKEND := $(shell test "`uname -s`" = Linux && echo cpu)
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c "$(NEW_ENOUGH)" 2>/dev/null && echo $$p && break; done)
COMMA := ,
CREATED := $(VENV)/created.stamp
DEMO_READY := $(VENV)/demo-$(BACKEND).stamp
TEST_READY := $(VENV)/test-$(BACKEND).stamp
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

DEMO_PICTURE := examples/scene.png
DEMO_QUESTION := What is in this image?

MODEL := demo

.PHONY: help demo doctor test soak check bench clean

help:
	@echo "make demo    answer a question about a picture with the bundled model"
	@echo "make doctor  check this machine and the installation"
	@echo "make test    run the tests"
	@echo "make soak    run the tests that take minutes"
	@echo "make check   lint, format and type checks"
	@echo "make bench   measure the speed of a model (MODEL=..., now: $(MODEL)) on this machine"
	@echo "make clean   remove the virtual environment and caches"
	@echo "PYTHON=...   the Python to set up with (3.11 or later; found: $(PYTHON))"
	@echo "BACKEND=...  Linux only: cpu, cuda12 or cuda13 (now: $(BACKEND))"

demo: $(DEMO_READY)
	@echo
	@echo "picture:  $(DEMO_PICTURE)"
	@echo "question: $(DEMO_QUESTION)"
	@echo "answer:"
	@$(BIN)/mlx-lfm2vl generate --model demo --image $(DEMO_PICTURE) --prompt "$(DEMO_QUESTION)" --verbose
	@echo
	@echo "Go on with a picture of yours and a full model, for example:"
	@echo "  $(BIN)/mlx-lfm2vl generate --model LiquidAI/LFM2.5-VL-450M --image PICTURE --prompt QUESTION"
	@echo "  $(BIN)/mlx-lfm2vl --help"

doctor: $(DEMO_READY)
	$(BIN)/mlx-lfm2vl doctor

# GPUs with units for TF32 (Apple M5, NVIDIA) multiply float32 in it by default: faster, with other numbers.
test soak bench: export MLX_ENABLE_TF32 = 0

# One process a core: more threads would only wait for each other. One that has no tests left takes some of another.
test: export OPENBLAS_NUM_THREADS = 1
test: $(TEST_READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not soak"

soak: $(TEST_READY)
	$(BIN)/python -m pytest -m "soak or hypothesis"

check: $(TEST_READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports=silent --no-warn-unused-configs examples

bench: $(DEMO_READY)
	$(BIN)/mlx-lfm2vl bench $(MODEL)

# The stamps are written last, so that an interrupted set-up starts again.
$(CREATED):
	@test -n "$(PYTHON)" || { \
	  echo "No Python >= 3.11 with venv found (Debian: apt install python3-venv). Choose one: make demo PYTHON=..."; \
	  exit 1; }
	@$(PYTHON) -c "$(NEW_ENOUGH)" || { echo "$(PYTHON) is not a Python >= 3.11 with venv"; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON); the first time downloads some packages"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(DEMO_READY): $(CREATED) pyproject.toml
	@$(PIP) --editable ".$(if $(BACKEND),[$(BACKEND)])"
	@touch $@

$(TEST_READY): $(CREATED) pyproject.toml
	@$(PIP) --editable ".[test$(if $(BACKEND),$(COMMA)$(BACKEND))]"
	@touch $(DEMO_READY) $@

clean:
	rm -rf $(VENV) build/lib build/bdist* dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
