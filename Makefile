# make book    the environment, every notebook executed, the site in _build/site
# make test    the environment if needed, then every test (notebooks with small parameters included)
# make lab     JupyterLab on the notebooks
# make strip   notebooks without outputs, as they are committed;   make format   ruff
# make pdf     the built site as one file, _build/site/book.pdf; make book does it too where Chromium is
# make shots   pictures of every page in light and dark, wide and narrow, in _build/shots (needs Chromium)
# make clean   removes _build, everything made but the environment
#
# In an active conda environment (environment.yml):  make book PY=python
# CPU build of torch where the default one is CUDA:  make book TORCH="torch --index-url <pytorch's CPU index>"
VENV   ?= .venv
PY     ?= $(VENV)/bin/python
PYTHON ?= python3
TORCH  ?= torch
JOBS   ?= 2
# The models are small: two processes of one thread each are faster than one of two (measured: tests in 87 s against 134 s).
export OMP_NUM_THREADS ?= 1
MAKEFLAGS += --jobs=$(JOBS)
export PYTHONHASHSEED = 0
export PYDEVD_DISABLE_FILE_VALIDATION = 1
export TOKENIZERS_PARALLELISM = false

SITE      := _build/site
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
EXECUTED  := $(NOTEBOOKS:%=_build/src/%)
# What a notebook's output depends on besides itself: the package and the data.
CODE := $(shell find adatsq data -type f -not -path '*/__pycache__/*' 2>/dev/null)
BOOK := $(shell find book -type f -not -path '*/__pycache__/*')

# With Chromium the site has the book as a PDF too, and the first page a link to it.
CHROMIUM := $(firstword $(foreach name,chromium chromium-browser google-chrome chrome,$(shell command -v $(name) 2>/dev/null)))
PDF      := $(if $(CHROMIUM),$(SITE)/book.pdf)
export BOOK_PDF = $(notdir $(PDF))

.PHONY: book pdf shots test lab strip format clean
.DELETE_ON_ERROR:

book: $(SITE)/.checked
	@echo "The book: file://$(CURDIR)/$(SITE)/index.html"

# torch first and pinned, so that no later requirement brings another build of it.
ifeq ($(PY),$(VENV)/bin/python)
ENV := $(VENV)/.ready
$(ENV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	@echo "Installing into $(VENV): 2 to 4 minutes and about 2 GB"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt $(TORCH)
	$(PY) -m pip install -q -c constraints.txt -e ".[lab,book,test]"
	@touch $@
endif

# One executor for the book and the tests: papermill. What a failing notebook did is left in _build/failed.
_build/src/notebooks/%.ipynb: notebooks/%.ipynb $(CODE) | $(ENV)
	@mkdir -p $(@D) _build/failed
	@echo "Executing $<"
	@$(PY) -m papermill $< _build/failed/$(@F) --kernel python3 --cwd notebooks --no-progress-bar --execution-timeout 900 \
		> _build/failed/$*.log 2>&1 || { cat _build/failed/$*.log; echo "$< failed: read _build/failed/$(@F)"; exit 1; }
	@$(PY) -m nbstripout --keep-output --keep-count --keep-id --extra-keys metadata.widgets _build/failed/$(@F)
	@mv _build/failed/$(@F) $@ && rm _build/failed/$*.log

# From the executed copies, nothing executed again; a warning is an error.
$(SITE)/index.html: $(EXECUTED) $(BOOK) $(CODE) | $(ENV)
	@rm -f $(filter-out $(EXECUTED),$(wildcard _build/src/notebooks/*.ipynb))
	@mkdir -p _build/src && rm -rf _build/src/book && cp -r book _build/src/book
	$(PY) -m jupyter book build _build/src --config book/_config.yml --toc book/_toc.yml --path-output _build/jb -W --keep-going -n --all
	@rm -rf $(SITE) && cp -r _build/jb/_build/html $(SITE)
	@touch $(SITE)/.nojekyll

# The site as a reader gets it: links, anchors, no network, and (with Chromium) moving figures.
SITE_TESTS := tests/test_site.py tests/test_site_controls.py
$(SITE)/.checked: $(SITE)/index.html $(PDF) $(SITE_TESTS) tests/chromium.py tests/explorer_controls.py
	$(PY) -m pytest -q -n $(JOBS) $(SITE_TESTS)
	@touch $@

pdf: $(SITE)/book.pdf

$(SITE)/book.pdf: $(SITE)/index.html
	$(PY) book/to_pdf.py $(SITE) $@

shots: $(SITE)/index.html
	$(PY) tests/shots.py $(SITE) _build/shots

test: $(ENV)
	$(PY) -m pytest -q -n $(JOBS)

lab: $(ENV)
	$(PY) -m jupyter lab --notebook-dir=notebooks

strip: $(ENV)
	$(PY) -m nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill metadata.widgets metadata.language_info.version" $(NOTEBOOKS)

format: $(ENV)
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .

clean:
	rm -rf _build
