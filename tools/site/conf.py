"""Sphinx's settings; tools/site/build.py calls it. Nothing is fetched when a page is opened: no fonts, no scripts of others."""

project = "beitkit"
author = copyright = "the authors of beitkit"
extensions = ["myst_parser"]
root_doc = "README"
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "beitkit"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
myst_heading_anchors = 4  # the anchors that GitHub gives, to which the pages link
