# Sordino. "make" alone prints what there is.

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
# The version says which commit it is; what Go would add says how it was checked out.
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
BIN ?= bin
ARCHITECTURES ?= amd64 arm64
IMAGES ?= bin/images
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: build-agent ## build bin/ip-masq-agent and bin/sordino, static
	$(GOBUILD) -o $(BIN)/ ./cmd/sordino

.PHONY: build-agent
build-agent:
	@# The agent serves a few pages on loopback: HTTP/2 would be memory for nothing.
	$(GOBUILD) -tags nethttpomithttp2 -o $(BIN)/ ./cmd/ip-masq-agent

.PHONY: images
images: ## pack both into images for amd64 and arm64, below bin/images
	@for arch in $(ARCHITECTURES); do GOOS=linux GOARCH=$$arch $(MAKE) -s build BIN='$(IMAGES)'/linux-$$arch VERSION=$(VERSION) || exit; done
	@$(MAKE) -s pack VERSION='$(VERSION)'

.PHONY: pack
pack:
	@# What is built below IMAGES already. Tests begin here.
	@$(GO) run ./deploy/images/build -dir '$(IMAGES)' -version '$(VERSION)' -source '$(SOURCE)' \
		-revision "$$(git rev-parse HEAD 2>/dev/null)" -created "$$(git log -1 --format=%ct 2>/dev/null || echo 0)" \
		-architectures "$$(echo $(ARCHITECTURES) | tr ' ' ,)"

.PHONY: push
push: images ## push the images and their SBOMs: make push REGISTRY=registry.example.com/team
	@[ -n "$(REGISTRY)" ] || { echo "say where to: make push REGISTRY=registry.example.com/team" >&2; exit 1; }
	@$(GO) run ./deploy/images/build -dir '$(IMAGES)' -push '$(REGISTRY)'

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
