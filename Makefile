# `make demo` and `make test` set up what they need; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the tests use beside Python packages: an RTSP server (GStreamer), Prometheus, systemd's checker.
APT_PACKAGES := gir1.2-gst-rtsp-server-1.0 python3-gi python3-venv gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
	gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly prometheus systemd openssl gcc libc6-dev \
	e2fsprogs mount util-linux

.DEFAULT_GOAL := help
.PHONY: help demo test test-soak test-properties test-vm test-cuda faults fuzz audit bench lint lock clean system-packages

help:
	@echo "make demo       set up .venv, train a small model on generated parts, run the daemon on a generated camera"
	@echo "make test       lint, types, layers and all tests"
	@echo "make test-soak  the tests that take minutes, then months in SOAK_HOURS=2: faults by a seed, and a report with a picture"
	@echo "make test-properties  every property of the tests on EXAMPLES=30 times as many examples, others each time"
	@echo "make test-vm    USB cameras and systemd on a real kernel: a Debian guest under QEMU, built from packages"
	@echo "make test-cuda  the tests that need an NVIDIA GPU"
	@echo "make faults     the fault table alone; writes docs/faults.md with the times that were measured"
	@echo "make fuzz       coverage-guided fuzzing of configuration, bundles, weights, control, journal and H.264 (FUZZ_SECONDS=60 each)"
	@echo "make audit      what a release is installed with: hashes, licences, known holes (ADVISORIES=FOLDER in OSV format)"
	@echo "make lock       pin anew what a release is installed with (deploy/requirements.lock)"
	@echo "make bench      measure this machine against plain loops, serving and training"

# Installing again only when pyproject.toml changed; a stamp per set of extras.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/.installed-demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed-demo
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/inspectd demo

# Where apt-get is not permitted the tests that need one of these say so and are skipped.
system-packages:
	@sh tests/system_packages.sh $(APT_PACKAGES)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What makes and measures models computes; the demo learns longest, so it begins. The rest mostly waits, for cameras and
# clocks. So many of a kind share two cores well; one thread each, or idle threads of one spin while the other wants the core.
# What may not miss a frame of a live camera comes last, alone.
COMPUTING := tests/test_demo.py tests/test_workshop_*.py tests/test_detect_*.py tests/test_model_*.py tests/test_bench.py
ALONE := tests/test_daemon_rtsp.py
# Faults are waiting for what the daemon does, each with a daemon of its own; the longest files begin.
FAULTS := $(foreach part,stream camera disk engine threads process,tests/faults/test_$(part).py) tests/faults
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest
BY_FILE := --dist loadfile --no-loadscope-reorder

# Debian's packages arrive while Python's do and the code is checked.
test:
	@$(MAKE) --no-print-directory --jobs=2 system-packages lint
	$(PYTEST) -n 2 $(BY_FILE) $(COMPUTING)
	$(PYTEST) -n 3 $(BY_FILE) $(addprefix --ignore-glob=,$(COMPUTING) $(ALONE) tests/faults/*)
	$(PYTEST) -n 4 $(BY_FILE) $(FAULTS)
	$(PYTEST) $(ALONE)

SOAK_HOURS ?= 2
SOAK_SEED ?= 1

test-soak: $(VENV)/.installed-test system-packages
	$(BIN)/pytest -m soak --timeout=3600
	$(BIN)/python tests/soak/run.py --hours $(SOAK_HOURS) --seed $(SOAK_SEED) -o build/soak-$$(date +%Y%m%d-%H%M%S)

EXAMPLES ?= 30

test-properties: $(VENV)/.installed-test
	INSPECTD_EXAMPLES=$(EXAMPLES) $(PYTEST) -n 2 -m hypothesis --timeout=3600

# Each row alone: what one of them costs another is no property of the fault.
faults: $(VENV)/.installed-test system-packages
	rm -rf build/faults
	INSPECTD_FAULT_TIMES=build/faults $(PYTEST) -m "soak or not soak" tests/faults --deselect tests/faults/test_page.py
	$(BIN)/python tests/faults/document.py docs/faults.md --times build/faults

VM_PACKAGES := qemu-system-x86 mmdebstrap e2fsprogs python3-venv

test-vm: $(VENV)/.installed-test
	@sh tests/system_packages.sh $(VM_PACKAGES)
	$(BIN)/pytest tests/vm -m vm -v --timeout=1800

test-cuda: $(VENV)/.installed-test
	$(BIN)/pytest -m "cuda and not soak"

FUZZ_SECONDS ?= 60

$(VENV)/.installed-fuzz: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --group fuzz
	touch $@

# What is found is kept in a folder that the last line names; the same command with --keep FOLDER goes on there.
fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python tests/hostile/fuzz.py --seconds $(FUZZ_SECONDS)

# ADVISORIES: a folder or all.zip in the OSV format. RELEASE: the Python of an installed release.
audit: $(VENV)/.installed-test
	$(BIN)/python deploy/audit.py $(if $(ADVISORIES),--advisories $(ADVISORIES)) $(if $(RELEASE),--python $(RELEASE))

bench: $(VENV)/.installed-demo
	$(BIN)/inspectd bench
	$(BIN)/python tests/bench/training.py

# For every Python from 3.11 on. No place to get packages from is written down: whoever installs has one.
lock: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --extra modbus --extra opcua \
		--generate-hashes --no-header --output-file deploy/requirements.lock
	sed -i -e '1i # What a release is installed with, by hash: the CPU runtime without torch, and both PLC bridges, for Python 3.11 and' \
		-e '1i # newer. Made from pyproject.toml by `make lock`; deploy/install.sh and deploy/docker/Containerfile install it.' \
		deploy/requirements.lock

clean:
	rm -rf $(VENV) .vm demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
