# Sordino. "make" alone prints what there is.

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/ip-masq-agent and bin/sordino, static
	@# The agent serves a few pages on loopback: HTTP/2 would be memory for nothing.
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -tags nethttpomithttp2 -o bin/ ./cmd/ip-masq-agent
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/sordino

.PHONY: run
run: build ## build, then run the demo: the example network with real packets
	bin/sordino demo

.PHONY: test
test: ## install what the tests need, then run all of them
	hack/setup
	hack/test

.PHONY: lint
lint: ## formatting, vet, staticcheck, shell scripts
	hack/setup
	hack/lint $(STATICCHECK)

.PHONY: bench
bench: build ## measure speed and size against baselines; writes docs/benchmarks.md
	hack/setup
	hack/kubernetes/build
	$(GO) run ./test/bench -o docs/benchmarks.md

.PHONY: golden
golden: ## rewrite the golden files from what the code does now; read the diff
	$(GO) test -exec '$(CURDIR)/hack/innamespaces' ./masq/... -run Golden -update

.PHONY: generate
generate: ## compile the .proto files below api/
	$(GO) run ./api/generate

.PHONY: clean
clean: ## remove what build made
	rm -rf bin
