# `make test`: everything that has to hold. `make demo`: the main job, end to end. Both need Debian 12, root and the
# compiler that Cargo.toml names; what they download is kept under target/.

.PHONY: test demo mutants kills bench compiler prepare lint unit doc deny kernel
.NOTPARALLEL:

deny := target/tools/bin/cargo-deny
deny_version := 0.20.2
# Under a kernel with IPVS: this machine's or a guest's.
in_vm := --config 'target."cfg(all())".runner=["$(CURDIR)/tests/vm/run", "--"]'
KILLS ?= 20
say = @echo "make: $(1)" >&2

test: compiler prepare lint unit doc deny kernel
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
	@cargo clippy --quiet --locked --all-targets --test kernel --test demo -- -D warnings

unit: compiler
	$(call say,waiting for the unit tests and the suite without privileges)
	@cargo test --quiet --locked

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

# Both daemons killed at KILLS seeded moments each; KILLS_SEED repeats a run.
kills: prepare
	$(call say,waiting for the kills: $(KILLS) of each daemon)
	@KILLS=$(KILLS) VM_LIMIT=7200 VM_ENV='KILLS KILLS_SEED' cargo test --quiet --locked $(in_vm) --test kernel -- \
		--test-threads 2 --nocapture killed

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

# Breaks each invariant on purpose, in a copy, and expects its test to fail. ARGS names mutants: make mutants ARGS='08 12'
mutants: compiler
	@tests/mutations/run $(ARGS)
