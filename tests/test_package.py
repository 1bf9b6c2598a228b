"What the package is made of: names, import cost, generated files"
import ast, importlib, importlib.util, pkgutil, subprocess, sys
from pathlib import Path

import pytest

import fastbit

ROOMS = sorted(m.name for m in pkgutil.iter_modules(fastbit.__path__) if m.ispkg)
MODULES = sorted(m.name.removeprefix('fastbit.') for m in pkgutil.walk_packages(fastbit.__path__, 'fastbit.') if not m.name.rpartition('.')[2].startswith('_'))
HEAVY = {'torch', 'fastai', 'timm', 'numpy', 'pandas', 'matplotlib', 'PIL', 'sklearn', 'scipy', 'huggingface_hub', 'IPython'}


@pytest.mark.parametrize('name', MODULES)
def test_public_names_exist(name):
    "A patch that nbdev does not recognise puts the patched name into __all__, bound to None"
    mod = importlib.import_module(f'fastbit.{name}')
    for n in getattr(mod, '__all__', []): assert getattr(mod, n, None) is not None, n


@pytest.mark.parametrize('room', sorted(set(ROOMS) - {'core', 'cli'}))
def test_a_door_hands_on_what_people_use(room):
    "Functions and classes, and the constants that pages type"
    door = importlib.import_module(f'fastbit.{room}')
    handed = {n: getattr(door, n) for n in door.__all__}
    assert {n for n, v in handed.items() if not callable(v)} <= {'BN_MODES', 'FLOWERS', 'PUBLIC_SETS', 'SEVERAL_LABELS', 'SINGLE_LABEL'}
    assert all(getattr(v, '__module__', '').startswith((f'fastbit.{room}.', 'fastbit.config')) for v in handed.values() if callable(v))


@pytest.mark.parametrize('room', ['core', 'cli'])
def test_an_empty_door(room):
    "So that the command starts in milliseconds"
    assert not [n for n in ast.walk(ast.parse((Path(fastbit.__file__).parent/room/'__init__.py').read_text())) if isinstance(n, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize('room', sorted(set(ROOMS) - {'core', 'cli'}))
def test_a_door_that_imports_later(room):
    "A module with the name of a function would hide it once it is imported; and editors see all names before that"
    source = (Path(fastbit.__file__).parent/room/'__init__.py').read_text()
    if 'open_door' not in source: pytest.skip('imports at once')
    door = importlib.import_module(f'fastbit.{room}')
    assert not {*door.__all__} & {m.name for m in pkgutil.iter_modules(door.__path__)}
    assert {*door.__all__} <= {*dir(door)}


@pytest.mark.parametrize('code', ['import fastbit', 'import fastbit.cli.command', 'from fastbit.cli.command import main; main(["--version"])',
                                  'from fastbit.cli.command import main; main(["baseline", "--help"])', 'import fastbit.core.text'])
def test_nothing_heavy_at_import(code):
    check = f"import sys\ntry:\n {code}\nexcept SystemExit: pass\nprint(sorted(set(sys.modules) & {HEAVY!r}))"
    out = subprocess.run([sys.executable, '-c', check], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == '[]'


def test_all_is_fastai_and_fastbit():
    names = {}
    exec('from fastbit.all import *', names)
    import fastai.vision.all as fv
    fastais = {n for n in vars(fv) if not n.startswith('_')}
    assert fastais - set(names) == set() and {'transfer_learner', 'image_dataloaders', 'baseline', 'list_bodies', 'Plan', 'plot_losses'} <= set(names)
    ours = {n for r in ROOMS if r not in ('core', 'cli') for n in importlib.import_module(f'fastbit.{r}').__all__}
    assert not ours & fastais   # no name of fastai's means something else


METHODS = ('fit_one_cycle', 'fine_tune', 'fit_head', 'fit_hyperrule', 'fit_rule', 'lr_find', 'tta', 'evaluate',
           'calibrate', 'report', 'export', 'lr_table')


def test_importing_changes_no_behaviour_of_fastai_torch_or_timm():
    "And any part of training gives the whole learner: its door imports what adds methods, and none of them is fastai's"
    check = '''
        import sys
        import fastai.vision.all as fv, timm, torch
        cls = (fv.Learner, fv.DataLoaders, fv.TfmdDL, fv.Recorder, fv.Optimizer, torch.nn.Module, timm.models.EfficientNet)
        state = lambda: [{k: id(v) for k, v in vars(c).items()} for c in cls] + [list(map(str, fv.defaults.callbacks))]
        before = state()
        import fastbit.training.position
        learner = sys.modules['fastbit.training.learner'].TransferLearner
        foreign = [n for n in sys.argv[1:] if not getattr(learner, n).__module__.startswith('fastbit.training')]
        assert not foreign, foreign
        import fastbit.all
        assert state() == before
    '''
    import textwrap
    subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(check), *METHODS], check=True)


def test_readme_commands_are_what_ci_runs():
    root = Path(__file__).parents[1]
    readme, ci = (root/'README.md').read_text(), (root/'.ci'/'run').read_text()
    for line in ('python -m pip install . && fastbit baseline', 'python -m pip install -e ".[dev]" && make test'):
        assert line in readme and line in ci, line


def test_coverage_knows_where_the_cells_of_a_notebook_stand():
    "Exported cells are run under the name of their module, so their lines have to be its lines"
    import json
    tool = importlib.util.spec_from_file_location('cover', Path(__file__).parents[1]/'tools'/'coverage.py')   # not by its name, which is that of the tracer
    cover = importlib.util.module_from_spec(tool); tool.loader.exec_module(cover)
    module = Path(fastbit.__file__).parent/'data'/'flowers.py'
    notebooks = {cover.module_of(cover.sources(p)): p for p in cover.module_notebooks()}   # whatever their numbers are
    assert set(notebooks) >= {module, module.parents[1]/'hyperrule.py', module.parents[1]/'all.py'}
    nb, begins, lines = json.loads(notebooks[module].read_text()), cover.cell_lines(module), module.read_text().splitlines()
    cells = {c['id']: ''.join(c['source']).splitlines() for c in nb['cells'] if '#| export' in ''.join(c['source'])}
    assert set(cells) == set(begins) and len(cells) >= 6
    for id, text in cells.items():
        for i, line in enumerate(text[1:], begins[id]):
            if not line.startswith('from fastbit'): assert lines[i] == line   # imports become relative ones
    assert list(cover.spans([1, 2, 3, 7, 9, 10])) == [[1, 3], [7, 7], [9, 10]]
    names = ('fastbit/data/loaders.py', '/somewhere/fastbit/fastbit/data/loaders.py', 'fastbit/all.py', 'fastbit/data/__init__.py')
    assert list(map(cover.module_name, names)) == ['data.loaders', 'data.loaders', 'all', 'data.__init__']


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    from fastbit.core.text import is_interactive
    monkeypatch.setattr(sys, 'stdout', type('Terminal', (), dict(isatty=lambda self: True, write=lambda self, s: 0, flush=lambda self: None))())
    for term, bars in (('dumb', False), ('xterm', True)):
        monkeypatch.setenv('TERM', term)
        assert is_interactive() is bars
