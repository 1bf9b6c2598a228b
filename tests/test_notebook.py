"README's notebook steps in one live kernel: a red line is an error"
import json, os, re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from fastbit.data import drawn_flowers

INDEX = Path(__file__).parents[1]/'nbs'/'index.ipynb'
SMALLER = {"size=128": "size=32", "lr_find()": "lr_find(num_it=20)", "fit_one_cycle(3,": "fit_one_cycle(2,"}
BEFORE = 'from matplotlib import pyplot as plt, figure; figure.Figure()'   # no picture, as long as `fastbit.all` starts the backend
PLOT = "plot_intervals({'one': (.5, .4, .6)})"
OTHERS = '''
from fastai.callback.progress import CSVLogger
learn.fit_one_cycle(1, 1e-4, cbs=CSVLogger())
with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(1, 1e-4, cbs=CSVLogger())
assert learn.logger is print
learn.evaluate(dl=learn.dls.test_dl('photos', with_labels=True)), learn.calibrate()
'''


def readme_steps() -> list[str]:
    "The block of the README, a cell for each line, at a size that takes seconds"
    text = '\n'.join(''.join(c['source']) for c in json.loads(INDEX.read_text())['cells'] if c['cell_type'] == 'markdown')
    block = re.search(r'In Python it is a fastai `Learner`:\n\n```python\n(.*?)```', text, re.S)[1]
    for a, b in SMALLER.items():
        assert a in block, a
        block = block.replace(a, b)
    return block.splitlines()


def test_the_steps_of_the_readme_write_nothing_red(tmp_path, monkeypatch):
    drawn_flowers(tmp_path/'photos', 8)
    monkeypatch.delenv('PYTHONWARNINGS', raising=False)   # a person's kernel has none
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(INDEX.parents[1]), os.environ.get('PYTHONPATH', '')]))
    monkeypatch.delenv('MPLBACKEND', raising=False)   # the notebook's own
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path/'ipython'))   # not the user's start-up files
    first, *steps = readme_steps()
    cells = [nbformat.v4.new_code_cell(s) for s in (BEFORE, first, PLOT, *steps, OTHERS)]
    nb = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(nb, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    outputs = [o for c in nb.cells for o in c.outputs]
    red = [o.text for o in outputs if o.output_type == 'stream' and o.name == 'stderr']
    assert not red, ''.join(red)
    shown = [{k for o in c.outputs for k in o.get('data', {})} for c in nb.cells]
    assert 'image/png' not in shown[0] and 'image/png' in shown[2]   # a figure that pyplot has not made, before it makes any
    assert 'image/png' in set.union(*shown[3:]) and 'text/html' in shown[-2]   # the rate finder's curve, and the page
