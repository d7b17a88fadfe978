# make demo    a neighbourhood on this machine; Ctrl-C ends it
# make test    everything that can be proven here
# make help    the rest
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build-here

GO      ?= go
LINT    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VULN    := golang.org/x/vuln/cmd/govulncheck@v1.1.4
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 10s

# .ci/buildflags keep the program small. grpc's trace pages are HTML templates,
# and with a template reachable the linker must keep every exported method:
# 6.6 MB; nobody looks at those pages, and the tag leaves them out. What is
# linked but hardly ever runs, or waits for people and networks when it does
# (transports of libp2p that a gateway does not open above all, and commands),
# is compiled without inlining: 2 MB.
BUILD   := $(shell cat .ci/buildflags) -ldflags '$(LDFLAGS)'

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: build-here
build-here: ## build bin/joulegate for this machine
	CGO_ENABLED=0 $(GO) build $(BUILD) -o bin/joulegate ./cmd/joulegate
	$(GO) run ./tools/verifypage -version $(VERSION) -out bin/joulegate-verify.html

.PHONY: demo
demo: build-here ## four gateways, their meters, cars and ledger, on this machine
	bin/joulegate demo $(ARGS)

.PHONY: setup
setup: ## install what the tests need (as root), or name it
	.ci/setup

.PHONY: test
test: setup ## all tests; in CI a skip that README does not list fails
	$(GO) build -o bin/skips ./tools/skips
	{ $(GO) test -json -timeout 15m ./... || failed=1; cd tools/image; $(GO) test -json -timeout 15m ./... || failed=1; exit $${failed:-0}; } | bin/skips -readme README.md

.PHONY: race
race: setup ## all tests under the race detector
	CGO_ENABLED=1 $(GO) test -race -timeout 30m ./...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (10s)
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -parallel 2 $$p; \
	  done; \
	done

.PHONY: soak
soak: ## a month of 1,000 homes and 200 cars in which everything goes wrong; ARGS='-for 5m -seed 7'
	$(GO) test -count=1 -timeout 1h ./chain/market -run TestAgainstOracles -market.problems 500000
	$(GO) run ./tools/soak $(ARGS)

CUTS ?= 100000
.PHONY: torture
torture: ## CUTS=100000 simulated power cuts under journal and ledger, with torn, reordered and lying writes
	$(GO) test -count=1 -timeout 3h -v ./chain/journal -run TestPowerCuts -journal.cuts $$(($(CUTS) / 2))
	$(GO) test -count=1 -timeout 3h -v ./chain/consensus -run TestPowerCuts -ledger.cuts $$(($(CUTS) / 2))

.PHONY: lint
lint: ## the pinned linter with the list in .golangci.yml
	$(GO) vet ./...
	$(GO) run $(LINT) run ./...
	cd tools/image && $(GO) run $(LINT) run ./...

.PHONY: fmt
fmt: ## format as the linter wants it
	$(GO) run $(LINT) fmt ./...

.PHONY: bench
bench: ## measure the budgets, compare with the last committed table, write it
	$(GO) run ./tools/bench $(ARGS)

.PHONY: picture
picture: build-here ## docs/demo.png, photographed from a running demonstration
	$(GO) run ./tools/e2e/picture

.PHONY: build
build: ## dist/ for amd64, arm64, armv7 and armv6, without cgo
	@for t in amd64 arm64 arm/7 arm/6; do \
	  arch=$${t%/*}; v=; [ "$$arch" = "$$t" ] || v=$${t#*/}; \
	  out=dist/joulegate-linux-$$arch$${v:+v$$v}; echo "$$out"; \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch GOARM=$$v $(GO) build $(BUILD) -o $$out ./cmd/joulegate; \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch GOARM=$$v $(GO) build -trimpath -ldflags '-s -w' -o $${out/joulegate-linux/joulegate-verify-linux} ./cmd/joulegate-verify; \
	done
	$(GO) run ./tools/verifypage -version $(VERSION) -out dist/joulegate-verify.html

.PHONY: packages
packages: build build-here ## dist/*.deb, with checksums, parts lists and provenance; the same bytes on every machine
	cd tools/image && $(GO) build -o ../../bin/image .
	bin/image

.PHONY: image
image: build build-here ## packages, and dist/joulegate-*-sd.img.gz for a Raspberry Pi with the slot that an update brings; needs mke2fs
	cd tools/image && CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -trimpath -ldflags '-s -w' -o ../../dist/joulegate-init-linux-arm64 ./init
	cd tools/image && $(GO) build -o ../../bin/image .
	bin/image -card with

.PHONY: hil
hil: ## the shipped programs on emulated hardware (as root: installs QEMU); RUN=estop V=1 shows one scenario
	.ci/setup hil
	$(GO) test -tags hil -count=1 -timeout 30m -parallel 2 -v $(if $(RUN),-run '(?i)$(RUN)') ./tools/hil $(if $(V),-hil.v)
	$(if $(RUN),,$(MAKE) qemu-user)

# The arithmetic of meters, money and the market, and what is stored and sent:
# where a word of 32 bits, its order or its alignment could make a difference.
# Left out are the tests that only try more of the same, for minutes. A session
# is tried in full: its tests say so when they have not seen every case.
CORE      := $(addprefix ./meter/,circuit discharge identify plan poll profile/... slot) $(addprefix ./chain/,. ledger market passbook tree) ./board/config
FULL_CORE := ./meter/session ./meter/setpoint
LONG_CORE := TestAgainstOracles|TestBuiltin|TestCorrectionsFindTheirInvoiceAmongMany|TestDetect|TestEvery|TestFeederNeverExceeded|TestLateEnergyIsInBothMatrices|TestLeadingWallboxes|TestLoadSteps|TestRandomWalk|TestRegistersOfEveryDevice|TestRoundTrip|TestWrites|Fuzz
qemu-user  = CGO_ENABLED=0 GOARCH=$(1) GOARM=7 $(GO) test -count=1 -exec $(2)

.PHONY: qemu-user
qemu-user: ## core packages on emulated arm64 and armv7 processors
	.ci/setup hil
	$(call qemu-user,arm64,qemu-aarch64-static) -short -skip '$(LONG_CORE)' $(CORE)
	$(call qemu-user,arm64,qemu-aarch64-static) $(FULL_CORE)
	$(call qemu-user,arm,qemu-arm-static) -short -skip '$(LONG_CORE)' $(CORE)
	$(call qemu-user,arm,qemu-arm-static) $(FULL_CORE)

# A vulnerability database is a folder as https://vuln.go.dev/vulndb.zip has it
# (index/, ID/), for machines without a network, or that address itself.
VULNDB ?=
.PHONY: vuln
vuln: ## known vulnerabilities in what is linked, and dist/joulegate.openvex.json; VULNDB=/folder or https://vuln.go.dev
	@case "$(VULNDB)" in \
	  /*) test -e $(VULNDB)/index/modules.json || { echo "vuln: $(VULNDB)/index/modules.json is not there: unpack https://vuln.go.dev/vulndb.zip"; exit 2; };; \
	  https://*) ;; \
	  *) echo "vuln: VULNDB=/folder with a copy of the database, or VULNDB=https://vuln.go.dev"; exit 2;; \
	esac
	@mkdir -p dist
	$(GO) run $(VULN) -db $(if $(filter /%,$(VULNDB)),file://)$(VULNDB) -tags grpcnotrace -format openvex ./cmd/... \
	  | sed -e 's|"Unknown Product"|"pkg:github/joulegate/joulegate@$(VERSION)"|' -e 's|"Unknown Author"|"joulegate maintainers"|' > dist/joulegate.openvex.json
	$(GO) run $(VULN) -db $(if $(filter /%,$(VULNDB)),file://)$(VULNDB) -tags grpcnotrace ./cmd/...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
