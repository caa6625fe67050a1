# Everything a person or a machine does with this checkout. `make` alone lists it.
# Needs python3 >= 3.10, a Rust toolchain, a C compiler and make; the rest is fetched into .venv and target.

# another Python for the venv: make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
# as a module: the scripts of a venv stop working when the checkout moves
RUN := $(VENV)/bin/python -m

# the venv of this checkout, whatever else is active
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYO3_PYTHON := $(CURDIR)/$(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# maturin asks pip for what is installed already, a line for each
export PIP_QUIET := 1
# nft, conntrack and miniupnpd are there for the tests; a user's PATH often ends before
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
unexport CONDA_PREFIX PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX

# what the extension module is made of
CORE := Cargo.toml Cargo.lock $(shell find rust -name '*.rs')

.DEFAULT_GOAL := help
.PHONY: help demo test test-tools test-rust test-python test-nat test-adversary test-long lint lint-rust lint-core lint-python
.PHONY: dependencies sbom sizes bench
.PHONY: bench-compare bench-connect bench-instructions bench-wan bench-rendezvous bench-relay fuzz fmt proto venv clean rust-tools
# cargo uses every core by itself; two of them would wait for each other
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 27
	@echo "Each of them sets up what it needs by itself; PYTHON=python3.12 chooses another Python."

demo: $(VENV)/core-release ## see gRPC calls go through two nodes
	@$(RUN) keynet demo

# a line for each test that did not run, for the report at the end; in CI (CI=true) such a test is a failure
test test-long: export KEYNET_NOT_RUN := $(CURDIR)/target/not-run

test: test-tools test-rust test-python ## run every test (but the long ones)
	@$(VENV)/bin/python scripts/not_run.py

# as root on a machine with apt it installs what is missing (KEYNET_INSTALL=no: it does not); else the tests say what they miss
test-tools:
	@sh scripts/test-tools.sh install
	@mkdir -p target && rm -f target/not-run

test-rust: | rust-tools
	@sh scripts/cargo-test.sh default

test-python: $(VENV)/core-dev
	@cargo build --locked --quiet --examples
	@$(RUN) pytest

test-long: test-tools $(VENV)/core-dev ## run every test, ten times the random cases
	@cargo build --locked --quiet --examples
	@KEYNET_CASES=100000 sh scripts/cargo-test.sh long
	@$(RUN) pytest
	@$(VENV)/bin/python scripts/not_run.py

test-nat: $(VENV)/core-dev ## test NAT traversal between every pair of kinds (Linux, root; writes docs with KEYNET_WRITE_MATRIX=1)
	@$(RUN) pytest tests/nat -m "matrix or not matrix"

test-adversary: test-tools $(VENV)/core-dev ## attack nodes and a rendezvous at length (Linux, root; half an hour)
	@$(RUN) pytest tests/adversary -m "long or not long"

lint: lint-rust lint-core lint-python dependencies sizes ## check format, lints, types, stubs and dependencies

# the venv first: the build of pyo3 asks its interpreter
lint-rust: $(VENV)/ready | rust-tools
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	cargo clippy --locked --all-targets --features python -- -D warnings

# the core stands without runtime, sockets and Python
lint-core: | rust-tools
	cargo check --locked --no-default-features
	@sh scripts/core-is-bare.sh

lint-python: $(VENV)/core-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) mypy.stubtest --mypy-config-file pyproject.toml --allowlist scripts/stubtest-allow.txt keynet

dependencies: $(VENV)/ready | rust-tools ## check licences, duplicates and known vulnerabilities of what keynet is made of
	@$(VENV)/bin/python scripts/dependencies.py check

sbom: $(VENV)/ready | rust-tools ## write dist/keynet.cdx.json: what keynet is made of (CycloneDX)
	@$(VENV)/bin/python scripts/dependencies.py sbom dist/keynet.cdx.json

sizes: $(VENV)/ready
	@$(VENV)/bin/python scripts/sizes.py

bench: $(VENV)/core-release ## measure; prints tables of ratios
	@cargo build --quiet --release --examples
	cargo bench --locked
	$(RUN) pytest benches

bench-compare: | rust-tools ## measure the transports beside librqbit-utp, quinn and TCP
	cargo build --quiet --release --locked --manifest-path benches/compare/Cargo.toml --target-dir target
	target/release/compare --json=.benchmarks/compare.json

bench-instructions: | rust-tools ## count what the core costs in instructions (needs valgrind)
	@$(PYTHON) scripts/instructions.py

fuzz: | rust-tools ## search for inputs that break the core: make fuzz [TARGET=codec] [FUZZ_SECONDS=60]
	@sh scripts/fuzz.sh run $(TARGET)

bench-connect: $(VENV)/core-release ## measure round trips from CONNECT to 200 over an emulated link (Linux, root)
	@cargo build --quiet --release --locked --example utp_bridge
	@$(VENV)/bin/python benches/wan/connecting.py

bench-wan: | rust-tools ## measure over an emulated WAN, beside the kernel's TCP (Linux, root; 25 minutes)
	cargo build --quiet --release --locked --example utp_bridge
	$(PYTHON) benches/wan $(WAN)

bench-rendezvous: $(VENV)/core-release ## measure a rendezvous with thousands of registered nodes (Linux)
	$(VENV)/bin/python benches/rendezvous_scale.py $(RENDEZVOUS)

bench-relay: $(VENV)/core-release ## measure the relay beside coturn (Linux; wants Debian's coturn)
	@cargo build --quiet --release --locked --example turn_load
	$(VENV)/bin/python benches/relay_compare.py $(RELAY)

fmt: $(VENV)/ready | rust-tools ## format everything
	cargo fmt
	$(RUN) ruff check --fix --select I .
	$(RUN) ruff format .

# the code of the two services; a test compares it with what is committed
proto: $(VENV)/ready ## generate the gRPC code from the .proto files
	$(RUN) grpc_tools.protoc -Ipython --python_out=python --pyi_out=python --grpc_python_out=python \
		keynet/demo/greeter.proto keynet/rendezvous/v1/rendezvous.proto

venv: $(VENV)/ready ## make .venv and install the development tools

clean: ## remove .venv, target and everything built
	rm -rf $(VENV) target dist python/keynet/_keynet*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .mypy_cache .ruff_cache .pytest_cache .benchmarks

rust-tools:
	@sh scripts/preflight.sh rust

# Stamps: each stands for a state of .venv, so that a second run does nothing. A venv that was made at another place, or
# whose interpreter has gone, counts as none.
ifneq ($(shell cat $(VENV)/ready 2>/dev/null && $(VENV)/bin/python -c '' 2>/dev/null && echo runs),$(CURDIR) runs)
.PHONY: $(VENV)/ready
endif

$(VENV)/ready: pyproject.toml scripts/preflight.sh scripts/venv.sh
	@sh scripts/preflight.sh python "$(PYTHON)"
	@sh scripts/venv.sh "$(PYTHON)" $(VENV)
	@echo "$(CURDIR)" > $@

# One extension module is installed at a time: building one kind takes away the stamp of the other.
$(VENV)/core-dev: $(CORE) $(VENV)/ready | rust-tools
	@echo "building the core with debug assertions (the first time takes some minutes)"
	@$(RUN) maturin develop --locked
	@rm -f $(VENV)/core-release && touch $@

$(VENV)/core-release: $(CORE) $(VENV)/ready | rust-tools
	@echo "building the optimised core (the first time takes some minutes)"
	@$(RUN) maturin develop --release --locked
	@rm -f $(VENV)/core-dev && touch $@
