"""Run the tutorials as a reader does, and note how long they take: `python tools/tutorials.py [NAME …]`

Each runs in a live kernel, offline, with an empty cache, and with the threads that the machine gives. A line on stderr, or a time above the promise of two minutes, is an error.
Times stand in `benchmarks/tutorials.json`, and in the line of each notebook that says where to open it. Nothing else should run meanwhile. (`nbdev-test nbs/tutorials/NAME.ipynb --save` keeps
outputs: lines instead of progress bars.)
"""
import argparse, json, os, re, sys, tempfile, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TIMES = ROOT/'benchmarks'/'tutorials.json'
PROMISE = 120   # seconds
REPO = 'fastbit/fastbit'
IN_COLAB = f"""#| hide
import sys
if 'google.colab' in sys.modules: # Colab has no fastbit yet
    !pip install -q git+https://github.com/{REPO}"""


def opening(name:str, seconds:float) -> str:
    "The line that says where to open a tutorial, and how long it takes"
    path = f'nbs/tutorials/{name}.ipynb'
    took = f'{max(5, 5*round(seconds/5))} seconds' if seconds < 90 else f'{seconds/60:.1f} minutes'
    return f'*[Open in Colab](https://colab.research.google.com/github/{REPO}/blob/main/{path}), or in Jupyter with `jupyter lab {path}`. It runs in about {took} on two cores.*'


def with_opening(nb, name:str, seconds:float):
    "Put the line into the notebook's second cell, and the cell that installs fastbit in Colab before its first code"
    text = nb.cells[1].source
    line = opening(name, seconds)
    nb.cells[1].source = re.sub(r'^\*\[Open in Colab\].*$', lambda m: line, text, flags=re.M) if '*[Open in Colab]' in text else f'{text.rstrip()}\n\n{line}'
    if not any(c.source == IN_COLAB for c in nb.cells):
        first = next(i for i, c in enumerate(nb.cells) if c.cell_type == 'code')
        nb.cells.insert(first, nbformat.v4.new_code_cell(IN_COLAB, id='colab'))
    return nb


def run(path:Path) -> float:
    "Run a notebook, change its line, and return the seconds that it took"
    nb = nbformat.read(path, 4)
    with tempfile.TemporaryDirectory() as files:
        for name in ('cache', 'ipython', 'tmp'): (Path(files)/name).mkdir()
        os.environ.update(FASTBIT_CACHE=f'{files}/cache', IPYTHONDIR=f'{files}/ipython', TMPDIR=f'{files}/tmp', HF_HUB_OFFLINE='1')
        start = time.perf_counter()
        NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(path.parent)))).execute()
        seconds = time.perf_counter() - start
    red = [o.text for c in nb.cells for o in c.get('outputs', []) if o.get('name') == 'stderr']
    if red: raise SystemExit(f'{path.name} writes on stderr: {red[0][:300]}')
    nbformat.write(with_opening(nbformat.read(path, 4), path.stem, seconds), path)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help='tutorials, without .ipynb (default: all)')
    names = parser.parse_args().names or sorted(p.stem for p in (ROOT/'nbs'/'tutorials').glob('*.ipynb'))
    times = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    for name in names:
        times[name] = round(run(ROOT/'nbs'/'tutorials'/f'{name}.ipynb'), 1)
        print(f'{name}: {times[name]} s', flush=True)
        TIMES.write_text(json.dumps(dict(sorted(times.items())), indent=1) + '\n')
    late = [n for n in names if times[n] > PROMISE]
    if late: sys.exit(f'longer than {PROMISE} s: {", ".join(late)}')


if __name__ == '__main__': main()
