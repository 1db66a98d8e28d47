# `make test`: everything that has to hold. `make demo`: the main job, end to end. Both need Debian 12, root and the
# compiler that Cargo.toml names; what they download is kept under target/.

.PHONY: test demo mutants kills power bench bench-checks bench-fleet fuzz compiler prepare lint unit matrix doc deny kernel \
	units
.NOTPARALLEL:

deny := target/tools/bin/cargo-deny
deny_version := 0.20.2
# Under a kernel with IPVS: this machine's or a guest's.
in_vm := --config 'target."cfg(all())".runner=["$(CURDIR)/tests/vm/run", "--"]'
KILLS ?= 20
fuzzer := target/tools/bin/cargo-fuzz
fuzzer_version := 0.13.2
fuzz_build = target/fuzz/$(FUZZ_SANITIZER)
FUZZ_TARGETS ?= ipvs_message ipvs_datagram ipvsadm_saved check_answer neighbour_frame
FUZZ_SECONDS ?= 60
# The address sanitizer where its library came with the compiler (rustup's have it, distributions' do not).
FUZZ_SANITIZER ?= $(if $(wildcard $(shell rustc --print sysroot)/lib/rustlib/*/lib/*_rt.asan.a),address,none)
say = @echo "make: $(1)" >&2

test: compiler prepare lint unit matrix doc deny kernel power
	$(call say,all passed)

compiler:
	@want=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); have=$$(rustc --version | cut -d' ' -f2); \
	printf '%s\n' "$$want" "$$have" | sort -CV || \
	{ echo "make: needs Rust $$want or newer, found $${have:-none}" >&2; exit 1; }

prepare: compiler
	@tests/vm/prepare

lint: compiler
	$(call say,waiting for rustfmt and clippy)
	@cargo fmt --check
	@cargo clippy --quiet --locked --all-targets -- -D warnings
	@cargo clippy --quiet --locked --test kernel --test matrix --test demo -- -D warnings

unit: compiler
	$(call say,waiting for the unit tests and the suite without privileges)
	@cargo test --quiet --locked

# MATRIX cases of the provisioner's kill matrix: all where it is empty. MATRIX_SEED repeats a run, ARGS narrows it.
MATRIX ?= 10
matrix: compiler
	$(call say,waiting for the kill matrix: $(or $(MATRIX),all) cases)
	@MATRIX=$(MATRIX) cargo test --quiet --locked --test matrix -- $(ARGS)

doc: compiler
	$(call say,waiting for the documentation)
	@RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --no-deps --document-private-items

# Unoptimised, because it builds in a minute and runs in seconds.
$(deny):
	$(call say,waiting for cargo-deny to be built: a minute or two)
	@CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=target/tools/build \
		cargo install --quiet --locked --debug --root target/tools cargo-deny@$(deny_version)
	@rm -rf target/tools/build

deny: $(deny)
	$(call say,waiting for cargo-deny)
	@$(deny) --log-level error check --hide-inclusion-graph bans licenses sources
	@if $(deny) --log-level off fetch db >/dev/null 2>&1; then $(deny) --log-level error check advisories; \
	else echo "make: the advisory database is out of reach: advisories not checked" >&2; fi

# ARGS goes to the test binary: make kernel ARGS='--nocapture lab_smoke'
kernel: prepare
	$(call say,waiting for the kernel suite)
	@cargo test --quiet --locked $(in_vm) --test kernel -- --test-threads 2 $(ARGS)

# The director's unit under a systemd of its own; part of the kernel suite.
units:
	@$(MAKE) --no-print-directory kernel ARGS='--nocapture units_sandbox'

# The provisioner killed at each of its journal writes, and both daemons at KILLS seeded moments each; KILLS_SEED repeats
# these.
kills: prepare
	@$(MAKE) --no-print-directory matrix MATRIX=
	$(call say,waiting for the kills: $(KILLS) of each daemon)
	@KILLS=$(KILLS) VM_LIMIT=7200 VM_ENV='KILLS KILLS_SEED' cargo test --quiet --locked $(in_vm) --test kernel -- \
		--test-threads 2 --nocapture killed

# Two boots of a guest with a disk of its own: the first loses its power in the middle of a step.
power: prepare
	$(call say,waiting for a guest that loses its power)
	@tests/vm/power

demo: prepare
	$(call say,waiting for the demo to be built and to run)
	@cargo test --quiet --locked $(in_vm) --test demo -- --nocapture $(ARGS)

# Side by side with ipvsadm, keepalived and a bare socket, in one boot. ARGS names measures (make bench ARGS='apply list'),
# BENCH_ROUNDS says how often each side runs.
bench: prepare
	@bench/prepare
	$(call say,waiting for the release build and the side-by-side runs)
	@rm -f target/vm/results/ipvs.json
	@VM_ENV=BENCH_ROUNDS cargo bench --quiet --locked $(in_vm) --bench ipvs -- $(ARGS); status=$$?; \
	if [ -e target/vm/results/ipvs.json ]; then mv target/vm/results/ipvs.json target/bench/ipvs.json; fi; exit $$status

# Checks on the machine itself: how they grow, what they cost beside a bare loop. ARGS=calm: five minutes of 1,000
# healthy servers while both cores spin.
bench-checks: compiler
	$(call say,waiting for the release build and the checks)
	@cargo bench --quiet --locked --bench checks -- $(ARGS)

# 50 directors, 3 provisioners on a PostgreSQL, 200 failures, 120 spares with an sshd each, on the machine itself. Figures
# in target/bench/fleet.json. FLEET_SEED repeats the choice of who is killed when. `make unit` runs a small one.
bench-fleet: compiler
	$(call say,waiting for the release build and the fleet)
	@cargo bench --quiet --locked --bench fleet

# Breaks each invariant on purpose, in a copy, and expects its test to fail. ARGS names mutants: make mutants ARGS='08 12'
mutants: compiler
	@tests/mutations/run $(ARGS)

# For the fuzz targets. Unoptimised, as cargo-deny.
$(fuzzer):
	$(call say,waiting for cargo-fuzz to be built: a minute or two)
	@CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=target/tools/build \
		cargo install --quiet --locked --debug --root target/tools cargo-fuzz@$(fuzzer_version)
	@rm -rf target/tools/build

# Each target for FUZZ_SECONDS, from fuzz/seed and what earlier runs found. No input of 4 KiB warrants an allocation of
# 64 MiB, nor 1 GiB in all. What crashed stays in target/fuzz. RUSTC_BOOTSTRAP lets a stable compiler use its sanitizer.
fuzz: compiler $(fuzzer)
	@command -v c++ >/dev/null || { apt-get -qq update && apt-get -qq install -y --no-install-recommends g++; } >&2
	$(call say,waiting for the fuzz targets to be built; sanitizer: $(FUZZ_SANITIZER))
	@[ $(FUZZ_SANITIZER) != none ] || echo "make: no sanitizer with this compiler: rustup toolchain install nightly," \
		"then RUSTUP_TOOLCHAIN=nightly make fuzz" >&2
	@cp Cargo.lock fuzz/Cargo.lock
	@RUSTC_BOOTSTRAP=1 $(fuzzer) build --sanitizer $(FUZZ_SANITIZER) --target-dir $(fuzz_build)
	@fuzz/seed target/fuzz/corpus
	$(call say,waiting for the fuzz targets: $(FUZZ_SECONDS) s for each of $(FUZZ_TARGETS))
	@for target in $(FUZZ_TARGETS); do \
		$(fuzz_build)/*/release/$$target target/fuzz/corpus/$$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
			-max_len=4096 -malloc_limit_mb=64 -rss_limit_mb=1024 -verbosity=0 -print_final_stats=1 \
			-artifact_prefix=target/fuzz/$$target- >target/fuzz/$$target.log 2>&1 || \
			{ tail -n 60 target/fuzz/$$target.log >&2; exit 1; }; \
		echo "make: $$target: $$(sed -n 's/^stat::number_of_executed_units: *//p' target/fuzz/$$target.log) inputs" >&2; \
	done
