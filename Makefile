# Everything a contributor runs. Only Go and git are needed for demo, test and
# build; 'make check' needs protoc, 'make race' a C compiler. Debian and Ubuntu:
#   apt-get install make gcc libc6-dev fuse3 protobuf-compiler
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
FUZZTIME ?= 10s
BENCH    ?=
DEMO     ?=
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

PROTO := transport/grpc/proto

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: ## serve, mount, read, write and compare on this machine (DEMO='--size 1GiB')
	$(GO) run ./cmd/telemap demo $(DEMO)

.PHONY: test
test: ## every test that this machine and user can run
	$(GO) test ./...

.PHONY: e2e
e2e: ## real programs (ext4, SQLite, fio, kill -9) on mounted regions
	TELEMAP_E2E=1 $(GO) test -count=1 -timeout 900s ./e2e

.PHONY: race
race: ## the tests with the race detector, then on one processor
	CGO_ENABLED=1 $(GO) test -race -shuffle=on ./...
	GOMAXPROCS=1 $(GO) test -count=1 ./...

.PHONY: check
check: check-format check-modules check-vet check-cross check-lattice check-generated ## what CI checks besides the tests

.PHONY: check-format
check-format:
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then printf 'gofmt -w these:\n%s\n' "$$files" >&2; exit 1; fi

.PHONY: check-modules
check-modules:
	$(GO) mod tidy -diff
	$(GO) mod verify

.PHONY: check-vet
check-vet:
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# The packages build everywhere; what a system cannot do is an error at run time.
.PHONY: check-cross
check-cross:
	CGO_ENABLED=0 $(GO) build ./...
	@for target in linux/arm64 darwin/arm64 windows/arm64; do \
		echo "GOOS=$${target%/*} GOARCH=$${target#*/} CGO_ENABLED=0 $(GO) vet ./..."; \
		GOOS=$${target%/*} GOARCH=$${target#*/} CGO_ENABLED=0 $(GO) vet ./...; \
	done

# Import lattice, package comments, links and names in the documents.
.PHONY: check-lattice
check-lattice:
	$(GO) test -run '^(TestImports|TestEvery|TestDocument)' .

# Works in a tree with changes: what is there before is compared with what comes.
.PHONY: check-generated
check-generated:
	@old=$$(mktemp -d); trap 'rm -rf "$$old"' EXIT; \
	cp -r $(PROTO)/. "$$old"; \
	$(PROTO)/generate.sh; \
	diff -r "$$old" $(PROTO) || { echo "generated code was not up to date: commit what $(PROTO)/generate.sh made" >&2; exit 1; }

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each (default 10s)
	@list=$$(mktemp); trap 'rm -f "$$list"' EXIT; \
	$(GO) test -list '^Fuzz' ./... | awk '/^Fuzz/ {n[k++] = $$1} /^ok/ {for (i = 0; i < k; i++) print $$2, n[i]; k = 0}' > "$$list"; \
	[ -s "$$list" ] || { echo "no fuzz target found" >&2; exit 1; }; \
	while read -r pkg name; do \
		echo "== $$name in $$pkg"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x "$$pkg"; \
	done < "$$list"

.PHONY: bench
bench: ## measure, beside what else the machine can do (BENCH='flags')
	$(GO) run ./bench $(BENCH)

.PHONY: soak
soak: ## the random tests for much longer
	TELEMAP_SOAK=1 $(GO) test -count=1 -timeout 3h ./...

.PHONY: build
build: ## a static binary, ./telemap
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.buildVersion=$(VERSION)' -o telemap ./cmd/telemap

.PHONY: clean
clean: ## remove what the targets above left here
	rm -rf telemap telemap.exe bench-out
