"""Every line of code that stands in the text of a page runs, and every notebook has the form of a page

Code cells are run by nbdev; this is about code in Markdown, which nothing runs. Its lines are those of full-size runs, so they run here as they stand, but with small numbers: the public sets are a few drawn flowers, the hub's files are random
weights, images have 32 pixels, and a fit has a step or an epoch. What a page writes is checked against the signatures before the numbers are replaced.
"""
import ast, inspect, json, re, shlex, shutil, sys
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, timm, torch

import fastbit.all as fa
from fastbit import bodies
from fastbit.baseline import run as baseline_module
from fastbit.bodies import load, weights
from fastbit.cli import command, parser
from fastbit.data import PUBLIC_SETS, digits_table, drawn_flowers, image_table, public
from fastbit.config import recipes_with
from fastbit.metrics import fit_feature_gaussian, held_out_answers
from fastbit.training import TransferLearner

NBS = Path(__file__).parents[1]/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(NBS).parts))
# what a test cannot do inside itself: .ci/run does it, in the words of the README
SETUP = ('python -m venv', 'python3 -m venv', '. fastbit-env', 'python -m pip install', 'pip install')
# tests/test_processes.py launches by Accelerate, tests/test_serve.py serves
ELSEWHERE = ('make test', 'make bench', 'accelerate launch', 'fastbit serve', 'curl')


def blocks(lang) -> list:
    "(page, code) of every fenced block of a language"
    return [(str(p.relative_to(NBS)), m[1]) for p in NOTEBOOKS for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'markdown'
            for m in re.finditer(rf'^```{lang}\n(.*?)^```', ''.join(c['source']), re.M | re.S)]


def test_there_are_such_blocks():
    "So that the tests below run something"
    assert len(blocks('python')) >= 6 and len(blocks('sh')) >= 8
    langs = {m for p in NOTEBOOKS for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'markdown' for m in re.findall(r'^```(\w+)$', ''.join(c['source']), re.M)}
    assert langs <= {'python', 'sh'}, langs


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "What the fixture `small` copies: made once"
    root = tmp_path_factory.mktemp('pages')
    drawn_flowers(root/'photos', 8)
    net = bodies.build_body('test_efficientnet', 6, 'random')
    about = fa.Artifact('test_efficientnet', tuple(sorted(fa.FLOWERS)), fa.body_preprocess('test_efficientnet', 32))
    features = np.random.default_rng(0).random((100, net.num_features))
    right = torch.eye(6)[torch.arange(100) % 6]
    answers = held_out_answers(.5*right + .5/6, torch.arange(100) % 6, gaussian=(g := fit_feature_gaussian(features)), distance=g.distances(features))
    fa.save_artifact(root/'results'/'model', net, about, answers=answers)
    fa.draw_flower('poppy', 77).save(root/'new.jpg')
    return root


@pytest.fixture(scope='module')
def hub(tmp_path_factory): return tmp_path_factory.mktemp('hub')


@pytest.fixture
def small(made, hub, tmp_path, monkeypatch):
    "A folder `photos`, a network in `results`, stand-ins for what a network would bring"
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    photos = tmp_path/'photos'
    files = sorted(photos.rglob('*.png')) + sorted(photos.rglob('*.jpg'))
    pd.DataFrame(dict(path=files, level=[i + .25 for i in range(len(files))])).to_csv(tmp_path/'levels.csv', index=False)
    pd.DataFrame(dict(image=files, label=[p.parent.name for p in files], patient=[f'p{i//2}' for i in range(len(files))])).to_csv(tmp_path/'labels.csv', index=False)
    pd.DataFrame(dict(image=files, label=[('red;big', 'red', 'big', ';')[i % 4] for i in range(len(files))])).to_csv(tmp_path/'tags.csv', index=False)
    monkeypatch.chdir(tmp_path)

    def hub_file(arch):
        file = hub/f'{arch}.safetensors'
        if not file.exists():
            from safetensors.torch import save_model
            save_model(timm.create_model(bodies.timm_name(arch).split('.')[0], pretrained=False), str(file))
        return file
    for module in (weights, load, baseline_module): monkeypatch.setattr(module, 'hub_file', hub_file)
    monkeypatch.setattr(weights, '_check_hub', lambda name, where: None)   # asks whether the hub has the file, before the run
    table = lambda name: image_table(photos) if name in PUBLIC_SETS else digits_table()
    monkeypatch.setattr(public, 'named_table', table)
    return dict(named_table=table, untar_data=lambda url: photos)


def shrunk(f, **numbers):
    "`f` with other numbers than it is called with, where it takes them; called as on the page it has to be callable"
    sig = inspect.signature(f)
    @wraps(f)
    def call(*args, **kwargs):
        bound = sig.bind(*args, **kwargs)
        recipe = bound.arguments.get('recipe', 'auto' if 'recipe' in sig.parameters else None)
        foreign = [k for k in ('epochs', 'n_steps') if isinstance(recipe, str) and recipe not in recipes_with(k)]
        if bound.arguments.get('solver') == 'lbfgs': foreign.append('n_epoch')
        bound.arguments.update({k: v for k, v in numbers.items() if k in sig.parameters and k not in foreign})
        return f(*bound.args, **bound.kwargs)
    return call


class Interface:
    "As Gradio's: a function of an image, as an array, that gives a probability for each label"
    def __init__(self, fn, inputs, outputs): self.fn, self.kinds = fn, (inputs, outputs)
    def launch(self):
        found = self.fn(np.zeros((40, 30, 3), np.uint8))
        assert self.kinds == ('image', 'label') and sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize('page, code', blocks('python'), ids=lambda v: v if v.endswith('.ipynb') else '')
def test_python_on_a_page_runs(page, code, small, monkeypatch):
    for name, numbers in (('fit_hyperrule', dict(batch_size=8, n_steps=1, eval_every=1)), ('fit_one_cycle', dict(n_epoch=1)), ('fit_head', dict(n_epoch=1)), ('fit_upper', dict(n_steps=4)), ('lr_find', dict(num_it=20))):
        monkeypatch.setattr(TransferLearner, name, shrunk(getattr(TransferLearner, name), **numbers))
    ours = dict(image_dataloaders=shrunk(fa.image_dataloaders, size=32, bs=8), baseline=shrunk(fa.baseline, size=32, epochs=2, n_steps=4),
                few_shot_curve=shrunk(fa.few_shot_curve, size=32, ks=(1,), repeats=1, n_steps=1, batch_size=8, scale=None), **small)
    for k, v in ours.items(): monkeypatch.setattr(fa, k, v)
    monkeypatch.setitem(sys.modules, 'gradio', SimpleNamespace(Interface=Interface))   # which is not installed
    names = {}
    if 'import' not in code: exec('from fastbit.all import *', names)
    with pytest.warns() as _:   # random weights, short runs: said aloud, and beside the point here
        import warnings; warnings.warn('one at least')
        exec(code, names)
    fa.plt.close('all')


@pytest.mark.parametrize('page, code', blocks('sh'), ids=lambda v: v if v.endswith('.ipynb') else '')
def test_commands_on_a_page_run(page, code, small, capsys):
    for line in code.splitlines():
        for part in re.split(r'\s&&\s', re.sub(r'(^|\s)#.*', '', line).strip()):
            if not part or part.startswith((*SETUP, *ELSEWHERE)): continue
            words = shlex.split(part)
            assert words[0] == 'fastbit', f'{page}: who runs {part!r}?'
            takes = {o for a in parser.make_parser()._subparsers._group_actions[0].choices[words[1]]._actions for o in a.option_strings}
            more = [w for o, v in (('--dry-run', []), ('--size', ['32']), ('--device', ['cpu'])) if o in takes and '--help' not in words for w in (o, *v)]
            if words[1] == 'rule': more = []
            if words[1] == 'leaderboard': more += ['--top', '0']
            if '--procs' in words: words[words.index('--procs')+1] = '1'   # tests/test_processes.py starts several
            try: status = command.main(words[1:] + more)
            except SystemExit as e: status = e.code
            assert not status or (words[1] == 'check' and status == 1), (page, part, capsys.readouterr().err)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: str(p.relative_to(NBS)))
def test_a_notebook_is_a_page(path):
    nb = json.loads(path.read_text())
    cells = nb['cells']
    first = ''.join(cells[0]['source'])
    assert cells[0]['cell_type'] == 'markdown' and re.match(r'# .+\n> .+', first), 'a title and a line that says what it is about'
    assert len(cells) > 1 and cells[1]['cell_type'] == 'markdown', 'then a paragraph'
    assert nb['metadata'] == dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    errors = [o for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error' or o.get('name') == 'stderr' and 'Warning' in ''.join(o['text'])]
    assert not errors
    for c in cells:
        text = ''.join(c['source'])
        if c['cell_type'] != 'code' or '#| hide' in text or text.startswith(('!', '%')): continue
        kinds = {isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(re.sub(r'^!.*', '', text, flags=re.M)).body}
        assert kinds != {True, False} or path.name in ('03_main.ipynb', '02_all.ipynb'), f'imports alone in a cell: {text[:80]}'


def test_tutorials_keep_their_pictures():
    for path in sorted((NBS/'tutorials').glob('*.ipynb')):
        data = [o.get('data', {}) for c in json.loads(path.read_text())['cells'] for o in c.get('outputs', [])]
        assert sum('image/png' in d for d in data) >= (0 if path.stem == 'shell_and_files' else 2), path.name


def test_kept_outputs_show_no_path_of_the_machine_that_made_them():
    "Tutorials write into a folder of their own and name files as a reader does; `fastbit cache` prints whole paths, a Dockerfile has its image's"
    printed = {'!fastbit cache', "print(Path('image/Dockerfile').read_text())"}
    found = []
    for file in sorted(p for room in ('tutorials', 'how_to', 'concepts', 'coming_from') for p in (NBS/room).glob('*.ipynb')):
        for cell in json.loads(file.read_text())['cells']:
            if printed & set(''.join(cell['source']).splitlines()): continue
            for output in cell.get('outputs', []):
                shown = [output.get('text', []), *(v for k, v in output.get('data', {}).items() if k.startswith('text/'))]
                found += [(file.stem, m) for text in shown for m in re.findall(r'/(?:tmp|home|root|work|Users)/[\w./-]+', ''.join(text))]
    assert found == []


def test_kept_outputs_are_in_today_s_words():
    "Words that fastbit printed once: outputs that show them were not made by the code next to them"
    past = re.compile(r'\d % |kept from before|equal bit for bit|only this machine can|as kept|\ba tenth +after|_a_step|\d, (?:valid|test)\)')
    found = []
    for file in NOTEBOOKS:
        for cell in json.loads(file.read_text())['cells']:
            texts = [o.get('text', '') for o in cell.get('outputs', [])] + [v for o in cell.get('outputs', []) for k, v in o.get('data', {}).items() if k.startswith('text/')]
            found += [(file.stem, m) for t in texts for m in past.findall(''.join(t))]
    assert found == []
