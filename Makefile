# `make demo` and `make test` are all one needs; both install first what is missing.
PYTHON ?= python3

.PHONY: setup demo test test-slow mutants wheel lint lint-python lint-nextflow lock audit sbom clean

setup: .venv/.installed .tools/.installed

.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "VirNucPro needs Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --require-hashes -r requirements.txt
	.venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.tools/.installed: scripts/nextflow/install scripts/nextflow/pom.xml
	@mkdir -p .tools
	scripts/nextflow/install
	@touch $@

# Runs in a folder of its own, so that it leaves nothing else behind.
demo: setup
	@mkdir -p demo
	cd demo && ../nextflow run .. -profile test --outdir results
	@echo
	@awk -f scripts/calls.awk demo/results/phages/contigs.tsv demo/results/others/contigs.tsv
	@echo
	@echo "Report: $(CURDIR)/demo/results/report/report.html"

lint: lint-python lint-nextflow

lint-python: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# Where a file has findings of one kind only, the linter of Nextflow 25.04.4 ends in a null pointer
# instead of printing them (nextflow-io/nextflow#6199). It fails all the same.
lint-nextflow: setup
	@found=$$(./nextflow lint .) && case "$$found" in *Warn*) false ;; esac || { echo "$$found"; exit 1; }; \
		echo "nextflow lint: $$(echo "$$found" | tail -n 1)"

test: lint
	.venv/bin/pytest -m "not slow"
	@if command -v nf-test >/dev/null; then PATH="$(CURDIR):$$PATH" nf-test test; else echo "nf-test is not on PATH: its tests were skipped."; fi

test-slow: setup
	.venv/bin/pytest -m slow

# Which changes of one place in the package no test notices: some two hours on 2 cores.
mutants: setup
	.venv/bin/python scripts/mutants.py -o docs/benchmarks/mutants.json

# What -profile conda installs.
wheel: setup
	rm -rf build # files that are gone from here would be taken out of it
	.venv/bin/pip wheel --quiet --no-deps --no-build-isolation -w dist .

# The versions and hashes of requirements.txt anew, from pyproject.toml; needs uv. requirements-runtime.txt,
# for containers, is the same without the tools of development: the one lock is the other's constraint.
COMPILE = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --quiet
lock:
	$(COMPILE) --extra dev -o requirements.txt
	$(COMPILE) --constraints requirements.txt -o requirements-runtime.txt

# Known holes in what is pinned; asks the package index.
audit: .tools/audit/.installed
	.tools/audit/bin/pip-audit --disable-pip --require-hashes -r requirements-runtime.txt

.tools/audit/.installed:
	$(PYTHON) -m venv .tools/audit
	.tools/audit/bin/pip install --quiet pip-audit==2.10.1
	@touch $@

# What the image's Python packages are, with their licences and who needs whom, in CycloneDX.
sbom: setup .tools/sbom/.installed
	.tools/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible .venv \
		| .venv/bin/python scripts/sbom.py requirements-runtime.txt containers/sbom.cdx.json

.tools/sbom/.installed:
	$(PYTHON) -m venv .tools/sbom
	.tools/sbom/bin/pip install --quiet cyclonedx-bom==7.5.0
	@touch $@

# What make and the tools left behind; .venv and .tools stay.
clean:
	rm -rf demo build dist *.egg-info containers/sbom.cdx.json .hypothesis .mypy_cache .pytest_cache .ruff_cache .nf-test
	find virnucpro_core tests scripts -name __pycache__ -prune -exec rm -rf {} +
