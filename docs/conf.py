"""How the documentation is built: `python -m sphinx -W docs docs/_build`."""

from finetune import __version__

project = "finetune"
author = copyright = "the finetune maintainers"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
default_role = "code"

nb_execution_mode = "off"  # stored outputs are shown; tests/test_notebook.py runs the notebooks
myst_heading_anchors = 4  # links such as methods.md#contrastive

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = f"finetune {release}"
html_copy_source = False
html_show_sphinx = False
