"""Write README.md from index.ipynb: text, pictures and the outputs that are text."""

from pathlib import Path

import nbformat

NBS = Path(__file__).resolve().parent


def readme_of(notebook: Path) -> str:
    """Markdown of a notebook; lines with nbdev's or MyST's directives are left out."""
    parts = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
        if cell.cell_type == "markdown" and not source.startswith("```{toctree}"):
            parts.append(source.replace("](images/", "](nbs/images/"))
        elif cell.cell_type == "code" and source:
            parts.append(f"```python\n{source}\n```")
            texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            if text := "".join(texts).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    (NBS.parent / "README.md").write_text(readme_of(NBS / "index.ipynb"), encoding="utf-8")
