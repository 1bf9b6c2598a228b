"README.md from the home page, `nbs/index.ipynb`: `python tools/readme.py`"
from pathlib import Path

from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]


def readme(notebook:Path) -> str:
    "The notebook as Markdown, with its pictures where they lie, seen from the repository's root"
    text, _ = MarkdownExporter().from_filename(str(notebook))
    return text.replace('"images/', '"nbs/images/')


if __name__ == '__main__': (ROOT/'README.md').write_text(readme(ROOT/'nbs'/'index.ipynb'))
