# The two commands: `make demo` and `make test`. Everything else serves them.
#
#   make build    every program into dist/bin, with a link to `diego` under each established name
#   make demo     a whole Diego on this machine: runs an image and a droplet, shows them, leaves no trace (root)
#   make test     installs what the tests need and passes them all (root for the kernel's part)
#   make test-vm  the tests that depend on the kernel on another one: Linux 6.1, cgroup v2 alone (see tests/vm)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PROFILE ?= release
TARGET ?= $(shell uname -m)-unknown-linux-musl
export CARGO_BUILD_TARGET := $(TARGET)

built := target/$(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Cargo does not strip programs of packages that have a profile of their own.
strip := $(if $(filter release,$(PROFILE)),-s)
programs := diego garden-init builder launcher healthcheck diego-sshd
names := bbs locket auctioneer rep gdn route-emitter ssh-proxy file-server cfdot

.PHONY: build gather demo test test-vm fuzz simulate simulate-auction lint bench-dev bench-garden bench-rootfs bench-net bench-cell bench-bbs bench-ssh tools clean

build: tools
	cargo build --locked --profile $(PROFILE) $(addprefix --bin ,$(programs))
	$(MAKE) gather

gather:
	mkdir -p dist/bin
	for program in $(programs); do install $(strip) -m 0755 $(built)/$$program dist/bin/; done
	for name in $(names); do ln -sf diego dist/bin/$$name; done

demo: build
	tests/demo/run dist/bin

# The programs are built with the tests, in one go: features that only tests need would otherwise build everything twice.
test: tools
	tests/tools
	cargo build --locked --workspace --all-targets
	$(MAKE) gather PROFILE=dev
	DIEGO_BIN=$(CURDIR)/dist/bin cargo test --locked --workspace --no-fail-fast
	target/$(TARGET)/debug/simulate seconds 15
	tests/demo/run dist/bin

test-vm: tools
	tests/packages busybox-static e2fsprogs btrfs-progs
	tests/vm/run

# What a user of one machine feels; figures on the last lines.
bench-dev: build
	tests/bench/dev dist/bin

# Containers beside those of crun, runc and containerd; figures on the last lines. ROUNDS, CONTAINERS and IDLE set its length.
bench-garden: build
	tests/packages busybox-static btrfs-progs crun runc containerd
	cargo build --locked --profile $(PROFILE) -p tests --bin bench-garden
	$(built)/bench-garden dist/bin

# Pulls beside those of skopeo with umoci, containerd and Docker; figures on the last lines. ROUNDS sets its length.
bench-rootfs: tools
	tests/packages docker-registry skopeo umoci containerd docker.io btrfs-progs
	cargo build --locked --profile $(PROFILE) -p tests --bin bench-rootfs
	$(built)/bench-rootfs

# What a container's network costs; figures on the last lines. ONLY names parts, ROUNDS, MIB and IDLE set their length.
bench-net: build
	tests/packages busybox-static nftables iproute2
	cargo build --locked --profile $(PROFILE) -p tests --bin bench-net
	$(built)/bench-net dist/bin

# What a cell costs and how fast it is; figures on the last lines. ONLY names parts; ROUNDS, STORM, INSTANCES, SECONDS and
# TALK_SECONDS set their length.
bench-cell: build
	tests/packages busybox-static nftables iproute2
	cargo build --locked --profile $(PROFILE) -p tests --bin bench-cell
	$(built)/bench-cell dist/bin

# The BBS: operations, events, a large cluster, auctions; figures on the last lines. See tests/bench/bbs for what sets sizes.
bench-bbs: tools
	tests/packages postgresql
	cargo build --locked --profile $(PROFILE) -p bench-bbs
	$(built)/bench-bbs

# ssh through proxy and daemon beside OpenSSH's own server; figures on the last lines. ONLY names parts, ROUNDS and MEBIBYTES set
# their length.
bench-ssh: build
	tests/bench/ssh/packages
	cargo build --locked --profile $(PROFILE) -p tests --bin bench-ssh
	$(built)/bench-ssh dist/bin

# Hostile input of all kinds for so many seconds each; what it finds is left in target/fuzz/found.
SECONDS ?= 60
fuzz:
	tests/fuzz/run $(SECONDS)

# Whole control planes, each under a seed, with everything that may go wrong, for so many seconds; SEED=n: that one again.
simulate: tools
	cargo build --locked --profile $(PROFILE) -p simulation --bin simulate
	$(built)/simulate $(if $(SEED),seed $(SEED),seconds $(SECONDS))

# Auctions at several scales, beside best fit and chance, in one process and on reps that are processes; reports, as text and
# drawn, go to target/auction. See docs/AUCTION.md.
simulate-auction: tools
	cargo build --locked --profile $(PROFILE) -p simulation --bin simulate-auction
	$(built)/simulate-auction target/auction

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

# What a build needs besides Rust: the musl target, a C compiler for it and a fast linker.
tools:
	@rustup target list --installed 2>/dev/null | grep -qx $(TARGET) || rustup target add $(TARGET)
	@command -v musl-gcc >/dev/null && command -v ld.lld >/dev/null || tests/packages musl-tools lld

clean:
	rm -rf dist
	cargo clean
