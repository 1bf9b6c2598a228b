"Options: none is declared and not read, and where two say one thing, none wins silently"
import functools, inspect, itertools, os, sys
from argparse import Namespace
from numbers import Real
from pathlib import Path

import pandas as pd, pytest

from fastbit.baseline import baseline, folder_rule
from fastbit.baseline.rule import rule_numbers
from fastbit.cli.command import main, read_arguments
from fastbit.cli.parser import make_parser
from fastbit.cli.runs import leaderboard_folder, run_folder
from fastbit.config import BiTRule, HeadOnly, OneCycle, RECIPES
from fastbit.core.options import Options
from fastbit.data import image_dataloaders, table_dataloaders
from fastbit.data.stream_dl import stream_dataloaders
from fastbit.data.streams import ImageStream
from fastbit.studies import few_shot_curve, leaderboard
from conftest import TINY, run_fastbit

small = dict(TINY, size=32, num_workers=0, verbose=False)


# --- what was typed, also at its default

@pytest.mark.parametrize('recipe, typed', [('onecycle', dict(epochs=8)), ('head', dict(epochs=10)), ('onecycle', dict(epochs=3)),
                                           (OneCycle(epochs=8), {}), (OneCycle(8), {}), (HeadOnly(epochs=10), {})])
def test_epochs_and_a_budget_are_refused_also_at_the_default(folder, recipe, typed):
    epochs = typed.get('epochs') or recipe.epochs
    with pytest.raises(ValueError, match=f"epochs={epochs} and budget='5m': the budget chooses the length"): baseline(folder, recipe=recipe, budget='5m', **typed, **small)


def test_a_recipe_without_epochs_takes_a_budget(folder):
    for recipe in ('head', HeadOnly(), HeadOnly(lr=.02, batch_size=8)): assert baseline(folder, recipe=recipe, budget='5m', epochs=None, dry_run=True, **small).budget


def test_lr_and_base_lr():
    for base_lr in (.003, .005, .01):
        with pytest.raises(ValueError, match=f'lr=0.01 and base_lr={base_lr}: one follows from the other'): rule_numbers(BiTRule(lr=.01, base_lr=base_lr))
    assert rule_numbers(BiTRule(lr=.003)) == rule_numbers(BiTRule(base_lr=.003)) == rule_numbers(BiTRule())


@pytest.mark.parametrize('words, message', [
    ('--recipe onecycle --budget 5m --epochs 8', '--epochs 8 and --budget 5m: the budget chooses'),
    ('--recipe head --time-limit 5m --epochs 10', '--epochs 10 and --budget 5m'),
    ('--budget 5m --checkpoint-every 9', '--checkpoint-every 9 and --budget 5m'),
    ('--recipe hyperrule --lr 0.01 --base-lr 0.003', '--lr 0.01 and --base-lr 0.003')])
def test_in_the_words_of_the_command(folder, capsys, monkeypatch, words, message):
    monkeypatch.chdir(folder.parent)
    assert main(['baseline', str(folder), *words.split()]) == 2 and message in capsys.readouterr().err


# --- two names of one thing

@pytest.mark.parametrize('words, names', [
    ('baseline --bs 8 --batch-size 4', '--bs 8 and --batch-size 4'), ('baseline --batch-size 4 --bs 8 --recipe head', '--bs 8 and --batch-size 4'),
    ('baseline --recipe hyperrule --bs 4 --micro-batch 8', '--bs 4 and --micro-batch 8'),
    ('baseline --budget 5m --time-limit 10m', '--budget 5m and --time-limit 10m'), ('baseline --time-limit 10m --budget 5m', '--time-limit 10m and --budget 5m'),
    ('baseline --views 2 --head-augment 3', '--views 2 and --head-augment 3'), ('baseline --scale none --batch-scaling linear', '--scale none and --batch-scaling linear'),
    ('leaderboard --k-per-class 2 --images-per-class 3', '--k-per-class 2 and --images-per-class 3'), ('rule --scale preset --batch-scaling none', '--scale preset and --batch-scaling none'),
    ('predict run a.png --bs 2 --batch-size 3', '--bs 2 and --batch-size 3'), ('evaluate run data --batch-size 3 --bs 2', '--batch-size 3 and --bs 2')])
def test_two_spellings_with_two_values_are_refused(capsys, words, names):
    with pytest.raises(SystemExit) as e: main(words.split())
    assert e.value.code == 2 and f'{names}: two names of one option. Pass one of them.' in capsys.readouterr().err


def test_spellings_that_agree_are_one():
    for words, name, v in (('baseline --bs 8 --batch-size 8', 'batch_size', 8), ('baseline --recipe hyperrule --bs 8 --micro-batch 8', 'micro_batch', 8),
                           ('baseline --budget 5m --time-limit 5m', 'budget', '5m'), ('baseline --epochs 3 --epochs 5', 'epochs', 5), ('rule --scale none --batch-scaling none', 'scale', None)):
        args = vars(read_arguments(words.split()))
        assert args[name] == v and 'bs' not in args and 'spelled' not in args


def test_quiet_and_verbose(capsys):
    with pytest.raises(SystemExit): main(['baseline', '--quiet', '-v'])
    assert 'not allowed with' in capsys.readouterr().err


def all_spellings():
    "(command, spellings) of each option that takes a value and has several"
    for command, parser in make_parser().commands.items():
        by_name = {}
        for a in parser._actions:
            if a.nargs != 0: by_name.setdefault(a.dest, []).extend(a.option_strings)
        yield from ((command, names) for names in by_name.values() if len(names) > 1)


def test_what_switches_a_default_off_says_so():
    "`--compile`, whose help said that it does not compile"
    commands = make_parser()._subparsers._group_actions[0].choices
    off = {o for c in commands.values() for a in c._actions if a.nargs == 0 and a.const is False for o in a.option_strings}
    assert off >= {'--no-cache', '--no-compile', '--no-crop', '--no-flip'}
    assert {o for o in off if not o.startswith('--no-')} <= {'--full-decode'}


def test_no_other_option_has_two_spellings_of_which_one_wins():
    value = {'--budget': ('5m', '6m'), '--batch-scaling': ('none', 'linear')}
    asked = list(all_spellings())
    assert len(asked) > 6
    for command, (first, second, *_) in asked:
        a, b = value.get(first, ('2', '3'))
        parser = make_parser().commands[command]
        for p in [p for p in parser._actions if not p.option_strings]: p.nargs = '?'
        for p in parser._actions: p.required = False   # `embed` needs -o
        with pytest.raises(SystemExit): parser.parse_args([first, a, second, b])
        parser.parse_args([first, a, second, a])


@pytest.mark.parametrize('recipe, bs, typed, words', [
    (OneCycle(batch_size=16), 8, {}, 'bs=8 and batch_size=16'), (OneCycle(batch_size=32), 8, {}, 'bs=8 and batch_size=32'), (HeadOnly(batch_size=16), 8, {}, 'bs=8 and batch_size=16'),
    (BiTRule(micro_batch=16), 8, {}, 'bs=8 and micro_batch=16'), ('onecycle', 8, dict(batch_size=32), 'bs=8 and batch_size=32'), ('head', 8, dict(batch_size=4), 'bs=8 and batch_size=4'),
    ('hyperrule', 8, dict(micro_batch=4), 'bs=8 and micro_batch=4'), ('onecycle', 0, {}, 'bs=0'), ('hyperrule', 0, {}, 'bs=0')])
def test_bs_and_the_recipes_own_name(folder, recipe, bs, typed, words):
    with pytest.raises(ValueError, match=words): baseline(folder, recipe=recipe, bs=bs, **typed, **small)


def test_bs_that_agrees(folder):
    for recipe, typed in ((OneCycle(batch_size=8), {}), (OneCycle(), {}), ('onecycle', dict(batch_size=8))):
        assert baseline(folder, recipe=recipe, bs=8, dry_run=True, **typed, **small).bs == 8


@pytest.mark.parametrize('name', RECIPES)
def test_an_option_next_to_a_recipe_object_is_refused(folder, name):
    record = RECIPES[name]
    for option, o in record.option_fields().items():
        v = .1 if o.default is None else o.default   # the default, too, was asked for
        with pytest.raises(ValueError, match=f'{option} and a recipe object'): baseline(folder, recipe=record(), **{option: v}, **small)


@pytest.mark.parametrize('typed, words', [(dict(bs=4, micro_batch=8), 'bs=4 and micro_batch=8'), (dict(bs=0), 'bs=0'), (dict(micro_batch=0), 'micro_batch=0'), (dict(size=0), 'size=0')])
def test_the_few_shot_curves_batches(folder, typed, words):
    with pytest.raises(ValueError, match=words): few_shot_curve(folder, **small | typed)


# --- what is declared is read

class Used(Exception): "By what reads the value of an option"

class Untouchable:
    "A value that notes when it is looked at; saying what it is, and passing it on, is not using it"
    def __init__(self): self.used = False
    def __repr__(self): return 'untouchable'
    def __deepcopy__(self, memo): return self

def _note(self, *args, **kwargs):
    self.used = True
    raise Used('an option was read')

class bool_(Untouchable): "By this name it passes for numpy's, which the records check before a function sees it"

Real.register(Untouchable)   # a number, for the same check

for word in ('bool eq ne lt le gt ge hash index int float len iter getitem call fspath contains add radd sub rsub mul rmul truediv rtruediv neg abs round').split():
    setattr(Untouchable, f'__{word}__', _note)


@pytest.fixture
def table(folder) -> pd.DataFrame:
    "A table of relative paths, which is not split"
    files = sorted(folder.rglob('*.png'))
    df = pd.DataFrame(dict(path=[f.relative_to(folder).as_posix() for f in files], label=[f.parent.name for f in files]))
    df.to_csv(folder/'labels.csv', index=False)
    return df


def record_options(f) -> list:
    "Names of the parameters that come from records"
    own = inspect.unwrap(f)
    records = [p.annotation for p in inspect.signature(own).parameters.values()]
    names = {k for r in records if isinstance(r, type) and issubclass(r, Options) for k in r.option_fields()}
    return [k for k in inspect.signature(f).parameters if k in names]


def reads(f, call, option) -> bool:
    "Is an option used, or refused?"
    value = bool_() if inspect.signature(f).parameters[option].annotation is bool else Untouchable()
    try: found = call(**{option: value})
    except Exception: return True
    return value.used or bool(getattr(found, 'failures', ()))


def batches(make):
    "The function, with the batches of the loaders that it makes"
    @functools.wraps(make)
    def made(**how): return [list(itertools.islice(dl, 9)) for dl in make(**how)]
    return made


def ways(folder, df):
    "(function, how it is called): small, with everything that makes an option matter"
    csv = folder/'labels.csv'
    split = df.assign(path=[folder/p for p in df.path], split=['train', 'valid']*(len(df)//2))
    from fastbit.bodies.preprocess import body_preprocess
    few = dict(num_workers=0, cache=True)
    yield 'folder_rule', folder_rule, dict(path=csv)
    yield 'image_dataloaders', batches(image_dataloaders), dict(path=csv, arch='test_efficientnet', size=32, **few)
    yield 'table_dataloaders', batches(table_dataloaders), dict(table=split, pp=body_preprocess('test_efficientnet', 32), bs=4, **few)
    data = [((folder/p).read_bytes(), label) for p, label in zip(df.path, df.label)]
    stream = ImageStream(lambda *where: iter(data), len(data), 'a list')
    yield 'stream_dataloaders', batches(stream_dataloaders), dict(train=stream, valid=stream, classes=['blue', 'green', 'red'], arch='test_efficientnet', size=32)
    yield 'few_shot_curve', few_shot_curve, dict(path=csv, ks=(1,), repeats=1, n_steps=2, batch_size=8, scale=None, **small)
    yield 'leaderboard', leaderboard, dict(path=csv, archs=['test_efficientnet=random'], top=1, recipes='onecycle', epochs=1, size=32, verbose=False, **few)
    for recipe, how in (('auto', dict(n_steps=2, views=2)), ('onecycle', dict(epochs=2)), ('head', dict(epochs=1)), ('hyperrule', dict(n_steps=2, batch_size=8, micro_batch=4))):
        yield f'baseline, {recipe}', baseline, dict(path=csv, recipe=recipe, **how, **small)


NAMES = ['folder_rule', 'image_dataloaders', 'table_dataloaders', 'stream_dataloaders', 'few_shot_curve', 'leaderboard', 'baseline, onecycle', 'baseline, head', 'baseline, hyperrule']

@pytest.mark.parametrize('name', NAMES)
def test_every_option_is_read(folder, table, name, tmp_path, capsys):
    "Each in turn is a value that nothing can work with: what ends well all the same has not looked at it"
    f, how = {n: (f, how) for n, f, how in ways(folder, table)}[name]
    names = record_options(f)
    assert len(names) > 3
    places = (dict(out=tmp_path/f'out-{i}') for i in itertools.count())   # a finished run in it would refuse any option
    place = lambda: next(places) if f is baseline else {}
    f(**how | place())   # as it is it ends well
    unread = [k for k in names if not reads(f, lambda **one: f(**how | place() | one), k)]
    assert not unread


def test_the_seed_of_streams_draws_the_augmentation(folder, table):
    f, how = next((f, how) for n, f, how in ways(folder, table) if n == 'stream_dataloaders')
    train = lambda seed: f(**how, seed=seed)[0][0][0]
    assert train(0).equal(train(0)) and not train(0).equal(train(1))


def test_the_rule_has_no_options_of_training(folder):
    for option in ('micro_batch', 'eval_every', 'checkpoint_every'):
        with pytest.raises(TypeError, match=f'unknown option {option}'): folder_rule(folder, **{option: 1})


@pytest.mark.parametrize('typed, words', [(dict(checkpoint_every=5), 'checkpoint_every=5 without out='), (dict(budget_from=1.), 'budget_from=1.0 without budget=')])
def test_an_option_without_the_one_that_it_is_about(folder, typed, words):
    with pytest.raises(ValueError, match=words): baseline(folder, **small, **typed)


class Watched(Namespace):
    "Notes which options a command looks at"
    def __getattribute__(self, name):
        own = object.__getattribute__(self, '__dict__')
        if name == '__dict__': own['looked_at'].update(own)   # given_options passes all of them on; the function refuses what it does not have
        elif name in own: own['looked_at'].add(name)
        return object.__getattribute__(self, name)


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    "Images, and a finished run of the head on them"
    from conftest import write_folder
    root = tmp_path_factory.mktemp('options')
    folder = write_folder(root/'data', dict(blue=12, green=12, red=12))
    baseline(folder, recipe='head', epochs=1, out=root/'run', **small)
    files = [f.relative_to(folder).with_suffix('') for f in sorted(folder.rglob('*.png'))]
    pd.DataFrame(dict(file=files, breed=[f.parent.name for f in files], part='valid')).to_csv(root/'table.csv', index=False)
    return root


@pytest.mark.filterwarnings('ignore::fastbit.core.text.DataWarning')
@pytest.mark.parametrize('words', ['predict run data/blue/000.png --tta --bs 4 --device cpu --probs', 'predict run data/blue/000.png --csv --spreadsheet',
                                   'evaluate run table.csv --root data --path-col file --label-col breed --split-col part --suffix .png --split valid --all --tta --bs 4 --device cpu',
                                   'evaluate run data', 'bodies *lite*', 'cache --clear'])
def test_every_option_of_the_other_commands_is_looked_at(shared, monkeypatch, capsys, words):
    from fastbit.cli.command import COMMANDS
    monkeypatch.chdir(shared)
    args = Watched(looked_at=set())
    typed = read_arguments(words.split())
    for k, v in vars(typed).items(): setattr(args, k, v)
    args.looked_at.clear()
    assert COMMANDS[typed.command](args) == 0
    about_it = {'command', 'traceback', 'began', 'argv'}
    assert set(vars(typed)) - about_it - object.__getattribute__(args, '__dict__')['looked_at'] == set()


# --- the folder of a command

@pytest.mark.parametrize('typed', ['--recipe auto', '--batch-size 32', '--bs 32', '--test-pct 0', '--arch tf_efficientnet_lite0 --weights auto', '--valid-pct 20', '--seed 0 --resize squash',
                                   '--cache-gb 4', '--recipe auto --metric accuracy', '--workers 2 --quiet --checkpoint-every 7'])
def test_a_default_that_is_typed_is_the_same_folder(typed):
    folder = lambda words: run_folder(read_arguments(f'baseline photos {words}'.split()))
    assert folder(typed) == folder('')


def test_another_value_is_another_folder():
    words = ['', '--recipe onecycle --epochs 10', '--steps 10', '--batch-size 16', '--lr 0.1', '--seed 1', '--valid-pct 30', '--no-flip', '--recipe hyperrule', '--recipe hyperrule --batch-size 32', '--recipe hyperrule --lr 0.01',
             '--recipe hyperrule --batch-scaling none', '--size 64', '--images-per-class 3', '--weights random', '--label-col breed']
    folders = [run_folder(read_arguments(f'baseline photos {w}'.split())) for w in words]
    assert len({*folders}) == len(words)
    default = run_folder(read_arguments('baseline photos --recipe hyperrule --batch-size 512 --base-lr 0.003 --batch-scaling linear'.split()))
    assert default == run_folder(read_arguments('baseline photos --recipe hyperrule'.split()))


def test_folds_of_any_recipe_continue_in_their_folder():
    folder = lambda words: run_folder(read_arguments(f'baseline photos --recipe head {words}'.split())).name
    assert folder('--folds 3').startswith('photos-head-') and not folder('').startswith('photos-head-')   # the other one by the time
    assert folder('--folds 3') != folder('--folds 4')


def test_the_leaderboards_folder():
    folder = lambda words: leaderboard_folder(read_arguments(f'leaderboard photos {words}'.split()))
    assert folder('--valid-pct 20 --seed 0 --top 3') == folder('') != folder('--epochs 8') != folder('--epochs 9')


# --- overwriting

def test_nothing_of_before_is_next_to_a_run_that_is_not_finished(shared, tmp_path, monkeypatch):
    import shutil
    from fastbit.baseline.run import Run
    out = tmp_path/'run'
    shutil.copytree(shared/'run', out)
    (out/'mine.txt').write_text('notes')
    again = dict(recipe='head', epochs=1, out=out, overwrite=True, **small)
    with pytest.raises(ValueError, match='lr=-1'): baseline(shared/'data', **again, lr=-1)
    with pytest.raises(ValueError, match='0 and 1'): baseline(shared/'data', **again, valid_pct=2.)
    baseline(shared/'data', **again, dry_run=True)
    assert sorted(p.name for p in out.rglob('*')) == sorted(['mine.txt', *(p.name for p in (shared/'run').rglob('*'))])   # refused, or a plan: all stays
    seen = []
    def stop(self, *args):
        seen.extend(p.name for p in out.iterdir())
        raise OSError('the disk is gone')
    monkeypatch.setattr(Run, '_train_phase', stop)
    with pytest.raises(OSError, match='the disk is gone'): baseline(shared/'data', **again)
    assert seen == ['mine.txt']


def test_a_run_may_start_from_the_model_that_it_replaces(shared, tmp_path):
    import shutil
    out = tmp_path/'run'
    shutil.copytree(shared/'run', out)
    how = dict(recipe='head', epochs=1, arch='test_efficientnet', size=32, num_workers=0, verbose=False)
    elsewhere = baseline(shared/'data', weights=out, **how)
    assert elsewhere.predictions.equals(baseline(shared/'data', weights=out, out=out, overwrite=True, **how).predictions)
    assert (out/'model'/'model.safetensors').exists()


@pytest.mark.parametrize('overwrite', [False, True])
def test_other_files_where_the_model_goes_are_found_before_the_work(shared, tmp_path, overwrite):
    (tmp_path/'model').mkdir()
    (tmp_path/'model'/'mine.txt').write_text('notes')
    with pytest.raises(FileExistsError, match='mine.txt'): baseline(shared/'data', out=tmp_path, overwrite=overwrite, dry_run=True, **small)


# --- the browser

@pytest.fixture
def browser(tmp_path, monkeypatch):
    "A program that writes down what it is to open"
    program, opened = tmp_path/'browser.sh', tmp_path/'opened.txt'
    program.write_text(f'#!/bin/sh\necho "$1" >> {opened}\n')
    program.chmod(0o755)
    monkeypatch.setenv('BROWSER', str(program))
    return lambda: opened.read_text().splitlines() if opened.exists() else []


QUICK = ('--arch', 'test_efficientnet', '--weights', 'random', '--size', 32, '--workers', 0)

@pytest.mark.skipif(os.name != 'posix', reason='the browser is a shell script')
@pytest.mark.parametrize('words, page', [
    (('baseline', 'data', '--recipe', 'head', '--epochs', 1, *QUICK), 'report.html'),
    (('leaderboard', 'data', '--arch', 'test_efficientnet=random', '--top', 0, '--size', 32, '--workers', 0), 'leaderboard.html'),
    (('check', 'data', '--no-labels'), 'check.html')])
def test_the_page_reaches_the_browser(shared, tmp_path, browser, words, page):
    out = tmp_path/'a folder with ä'
    words = [shared/'data' if w == 'data' else w for w in words]
    if page == 'check.html':   # the quickest: nothing is opened that was not asked for
        assert run_fastbit(*words, '--out', out, cwd=tmp_path).returncode == 0 and browser() == []
    run = run_fastbit(*words, '--out', out, '--open', cwd=tmp_path)
    assert browser() == [(out/page).as_uri()], run.stderr


def test_of_several_processes_one_opens_the_page(tmp_path, monkeypatch):
    from fastbit.cli.runs import open_page
    opened = []
    monkeypatch.setattr('webbrowser.open', lambda url: opened.append(url) or True)
    (tmp_path/'report.html').touch()
    for rank in '01':
        for k, v in dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2').items(): monkeypatch.setenv(k, v)
        open_page(tmp_path/'report.html')
    assert opened == [(tmp_path/'report.html').as_uri()]


def test_without_a_browser_the_page_is_named(tmp_path, monkeypatch, capsys):
    from fastbit.cli.runs import open_page
    monkeypatch.setattr('webbrowser.open', lambda url: False)
    (tmp_path/'report.html').touch()
    open_page(tmp_path/'report.html')
    assert f'no browser opened {tmp_path}/report.html' in capsys.readouterr().err


# --- what to install

def test_messages_name_packages_of_the_extras():
    "fastbit itself is not on the package index, so a message cannot name `fastbit[maps]`"
    import re
    root = Path(__file__).parents[1]
    extras = '\n'.join(re.findall(r'^\w+_requirements *=(.*)', (root/'settings.ini').read_text(), re.M))
    named = {m for f in (root/'fastbit').rglob('*.py') for m in re.findall(r'needs? [^.]*[.:] (?:Run: )?pip install (\w+)', f.read_text())}
    assert {'captum', 'accelerate', 'pyarrow'} <= named and not [m for m in named if not re.search(rf'\b{m}\b', extras)]


@pytest.mark.parametrize('package', ['pyarrow', 'webdataset'])
def test_a_missing_package_of_streams(package, monkeypatch):
    from fastbit.data.streams import _import
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f'needs {package}. Run: pip install {package}'): _import(package)


def test_processes_without_accelerate(shared, monkeypatch, capsys):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert main(['baseline', str(shared/'data'), '--procs', '2', '--out', str(shared/'procs')]) == 2
    assert 'Run: pip install accelerate' in capsys.readouterr().err


def test_help_of_a_factory_says_where_its_parameters_are_explained():
    "`help()` shows no comments: the docstring ends in the address of a page that nbdev makes"
    import fastbit.all as fb
    from fastbit._modidx import d
    pages = {d['settings']['doc_host'] + d['settings']['doc_baseurl'] + '/' + page for names in d['syms'].values() for page, _ in names.values()}
    for f in (fb.baseline, fb.transfer_learner, fb.image_dataloaders, fb.leaderboard, fb.check_data):
        first, _, rest = f.__doc__.partition('\n\nParameters: ')
        page, _, also = rest.partition(', or ')
        assert '\n' not in first and page in pages, page
        assert also in ('', f'{f.__name__}?? in IPython')
