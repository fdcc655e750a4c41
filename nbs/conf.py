"""The docs: Sphinx and MyST-NB over the notebooks as they are committed; nothing is fetched and nothing executed."""

import shutil
from pathlib import Path

import plotly

import hpacell

HERE = Path(__file__).parent

project = "hpacell"
author = "The hpacell founders"
html_show_copyright = False  # the licence says it
release = version = hpacell.__version__

extensions = ["myst_nb"]
root_doc = "index"
exclude_patterns = ["_docs", "**.ipynb_checkpoints", "README.md", "images"]
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "dollarmath"]
# Plotly's mime type is for JupyterLab; a page takes the HTML beside it, which loads plotly.js from the site itself.
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/png", 10), ("html", "application/vnd.plotly.v1+json", None)]
# nbdev's directives and Jupyter's widgets say nothing to a reader of pages.
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

html_theme = "furo"
html_title = "hpacell"
html_static_path = ["_static"]
html_css_files = ["hpacell.css"]
html_show_sourcelink = html_copy_source = False


def put_plotly(app) -> None:
    """One copy of plotly.js for the whole site, from the installed package."""
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", static / "plotly.min.js")


def strip_directives(app, docname, source) -> None:
    """Leave nbdev's lines (#| export) out of the pages."""
    import json

    path = Path(app.env.doc2path(docname))
    if path.suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines(keepends=True)
            cell["source"] = [line for line in lines if not line.startswith("#|")]
            if any("default_exp" in line for line in lines):
                cell["metadata"] = {"tags": ["remove-cell"]}
    source[0] = json.dumps(notebook)


def setup(app):
    app.connect("builder-inited", put_plotly)
    app.connect("source-read", strip_directives)
    return {"parallel_read_safe": True}
