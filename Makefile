# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install or name what
# is missing and build RocksDB once into a cache outside the checkout (about 20 minutes on two cores, then seconds).

CARGO := scripts/with-rocksdb cargo

.PHONY: help demo test quick sim soak fuzz shuttle lint fmt build release conformance canaries process-tests interop bench-core bench-log bench-puts bench-splits bench-idle codegen clean

help:
	@echo "make demo           three stores, 1,000 groups, load, a kill -9, and a cluster to play with"
	@echo "make test           all tests (unit, property, conformance, whole processes, repository checks), shuttle and sim"
	@echo "make quick          the tests that need no RocksDB: core, multiraft, transport, the log, small worlds; a minute"
	@echo "make sim            simulated worlds: the corpus, then those of the commit for SIM_MINUTES=3 on all cores"
	@echo "make soak           worlds of seeds nobody has tried, MINUTES=60 of them; SEED=n begins there instead"
	@echo "make shuttle        threads under chosen schedules; TEST=name, TIMES=10 more of them, REPLAY=file one again"
	@echo "make fuzz           arbitrary input against everything that reads any; MINUTES=10 in all, FUZZ_SEED=n to repeat"
	@echo "make lint           rustfmt and clippy, warnings denied"
	@echo "make build          the binary, debug (target/debug/polyraft)"
	@echo "make release        the binary, optimised (target/release/polyraft)"
	@echo "make conformance    etcd's own data files against the core"
	@echo "make canaries       known bugs planted in simulated hosts, and which checker catches each (docs/canaries.md)"
	@echo "make process-tests  the whole-process tests alone; TIMES=10 repeats them"
	@echo "make interop        a Python client against a demo, by generated stubs and by reflection (needs pip and a network once)"
	@echo "make bench-core | bench-log | bench-puts | bench-splits | bench-idle   figures (see benches/README.md)"
	@echo "make codegen        regenerate the committed protobuf code"

demo: release
	target/release/polyraft demo $(DEMO_ARGS)

test: build
	$(CARGO) test --workspace
	$(MAKE) shuttle
	$(MAKE) sim
	@echo "all tests passed"

quick:
	scripts/setup
	cargo test -p polyraft-core -p polyraft-multiraft -p polyraft-transport
	cargo test -p polyraft-store --no-default-features
	cargo test -p polyraft-sim

# docs/testing.md says what it finds and how to see a failure again. Without RocksDB, optimised, with every assertion.
SIM := cargo run --quiet --profile sim -p polyraft-tests --bin sim --
SIM_MINUTES ?= 3
SEED ?= $(shell date +%s)

sim:
	scripts/setup
	cargo build --profile sim -p polyraft-tests --bin sim
	$(SIM) --twice --count 4
	$(SIM) --corpus tests/corpus.txt --minutes $(SIM_MINUTES) --marks

soak:
	scripts/setup
	cargo build --profile sim -p polyraft-tests --bin sim
	$(SIM) --seed $(SEED) --minutes $(or $(MINUTES),60) --keep-going --shrink --marks

# Flags that every crate sees, hence a build of its own. It needs no RocksDB.
shuttle: export RUSTFLAGS := --cfg shuttle
shuttle: export CARGO_TARGET_DIR := target/shuttle
shuttle: export CARGO_PROFILE_TEST_OPT_LEVEL := 1
shuttle:
	cargo test -p polyraft-multiraft --lib sync::tests::$(TEST)
	cargo test -p polyraft-multiraft --test interleavings $(TEST)
	cargo test -p polyraft-store --no-default-features --test interleavings $(TEST)

# Each of the 21 targets in turn, from a seed drawn at the start; docs/fuzzing.md says how to repeat a failure.
FUZZ := POLYRAFT_FUZZ_SECONDS=$$(( $(or $(MINUTES),10) * 60 / 21 + 1 )) $(if $(FUZZ_SEED),POLYRAFT_FUZZ_SEED=$(FUZZ_SEED),)

fuzz:
	scripts/setup
	$(FUZZ) cargo test -p polyraft-core --test fuzz -- --test-threads 1
	$(FUZZ) cargo test -p polyraft-multiraft --test fuzz -- --test-threads 1
	$(FUZZ) cargo test -p polyraft-multiraft --test host fuzz:: -- --test-threads 1
	$(FUZZ) cargo test -p polyraft-store --no-default-features --test fuzz -- --test-threads 1
	$(FUZZ) cargo test -p polyraft-transport --lib fuzz:: -- --test-threads 1
	$(FUZZ) $(CARGO) test -p polyraft-server --lib fuzz:: -- --test-threads 1

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

fmt:
	cargo fmt --all

build:
	$(CARGO) build -p polyraft-server

release:
	$(CARGO) build --release -p polyraft-server

conformance:
	cargo test -p polyraft-core --test conformance

# Flags that every crate sees, hence a build of its own.
canaries:
	scripts/canaries $(CANARIES)

TIMES ?= 1
process-tests: build
	$(CARGO) test -p polyraft-tests --no-run
	for i in $$(seq $(TIMES)); do echo "run $$i of $(TIMES)"; $(CARGO) test -p polyraft-tests --test process || exit 1; done

interop: build
	scripts/interop

bench-core:
	cargo run --release -p polyraft-benches --no-default-features --features peers --bin core -- $(BENCH_ARGS)

bench-log:
	$(CARGO) run --release -p polyraft-benches --features peers --bin log

bench-puts: release
	$(CARGO) run --release -p polyraft-benches --bin puts -- $(BENCH_ARGS)

bench-splits: release
	$(CARGO) run --release -p polyraft-benches --bin splits -- $(BENCH_ARGS)

bench-idle: release
	$(CARGO) run --release -p polyraft-benches --bin idle -- $(BENCH_ARGS)

codegen:
	cargo run -p polyraft-tests --bin codegen

clean:
	cargo clean
