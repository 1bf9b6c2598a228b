"Options: none is declared and not read, and where two say one thing, none wins silently"
import functools, inspect, itertools, json, os, stat, sys
from argparse import Namespace
from pathlib import Path

import pandas as pd, pytest, torch

from fastbit.baseline import baseline, folder_rule
from fastbit.baseline.recipes import rule_numbers
from fastbit.cli.command import main, read_arguments
from fastbit.cli.parser import make_parser
from fastbit.cli.runs import leaderboard_folder, run_folder
from fastbit.config import BiTRule, HeadOnly, OneCycle, Options, RECIPES
from fastbit.data import image_dataloaders, table_dataloaders
from fastbit.data.stream_dl import stream_dataloaders
from fastbit.studies import few_shot_curve, leaderboard
from conftest import TINY, run_fastbit

small = dict(TINY, size=32, num_workers=0, verbose=False)


# --- what was typed, also at its default

@pytest.mark.parametrize('recipe, typed', [('onecycle', dict(epochs=8)), ('head', dict(epochs=10)), ('onecycle', dict(epochs=3)),
                                           (OneCycle(epochs=8), {}), (OneCycle(8), {}), (HeadOnly(epochs=10), {})])
def test_epochs_and_a_budget_are_refused_also_at_the_default(folder, recipe, typed):
    epochs = typed.get('epochs') or recipe.epochs
    with pytest.raises(ValueError, match=f"epochs={epochs} and budget='5m': the budget chooses the epochs"): baseline(folder, recipe=recipe, budget='5m', **typed, **small)


def test_a_recipe_without_epochs_takes_a_budget(folder):
    for recipe in ('head', HeadOnly(), HeadOnly(lr=.02, batch_size=8)): assert baseline(folder, recipe=recipe, budget='5m', epochs=None, dry_run=True, **small).budget


def test_lr_and_base_lr():
    for base_lr in (.003, .005):
        with pytest.raises(ValueError, match=f'lr=0.01 and base_lr={base_lr}: one follows from the other'): rule_numbers(BiTRule(lr=.01, base_lr=base_lr))
    assert rule_numbers(BiTRule(lr=.003, base_lr=.003)) == rule_numbers(BiTRule(lr=.003)) == rule_numbers(BiTRule(base_lr=.003)) == rule_numbers(BiTRule())


@pytest.mark.parametrize('words, message', [
    ('--budget 5m --epochs 8', '--epochs 8 and --budget 5m: the budget chooses'),
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


def test_no_other_option_has_two_spellings_of_which_one_wins():
    value = {'--budget': ('5m', '6m'), '--batch-scaling': ('none', 'linear')}
    asked = list(all_spellings())
    assert len(asked) > 6
    for command, (first, second, *_) in asked:
        a, b = value.get(first, ('2', '3'))
        parser = make_parser().commands[command]
        for p in [p for p in parser._actions if not p.option_strings]: p.nargs = '?'
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


def reads(call, option) -> bool:
    "Is an option used, or refused?"
    value = Untouchable()
    try: found = call(**{option: value})
    except Exception: return True
    return value.used or bool(getattr(found, 'failures', ()))


def batches(make):
    "The function, with all batches of the loaders that it makes"
    @functools.wraps(make)
    def made(**how): return [list(dl) for dl in make(**how)]
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
    yield 'few_shot_curve', few_shot_curve, dict(path=csv, ks=(1,), repeats=1, n_steps=2, batch_size=8, scale=None, **small)
    yield 'leaderboard', leaderboard, dict(path=csv, archs=['test_efficientnet=random'], top=1, epochs=1, size=32, verbose=False, **few)
    for recipe, how in (('onecycle', dict(epochs=2)), ('head', dict(epochs=1)), ('hyperrule', dict(n_steps=2, batch_size=8, micro_batch=4))):
        yield f'baseline, {recipe}', baseline, dict(path=csv, recipe=recipe, **how, **small)


NAMES = ['folder_rule', 'image_dataloaders', 'table_dataloaders', 'few_shot_curve', 'leaderboard', 'baseline, onecycle', 'baseline, head', 'baseline, hyperrule']

@pytest.mark.parametrize('name', NAMES)
def test_every_option_is_read(folder, table, name, tmp_path, capsys):
    "Each in turn is a value that nothing can work with: what ends well all the same has not looked at it"
    f, how = {n: (f, how) for n, f, how in ways(folder, table)}[name]
    names = record_options(f)
    assert len(names) > 3
    places = (dict(out=tmp_path/f'out-{i}') for i in itertools.count())   # a finished run in it would refuse any option
    place = lambda: next(places) if f is baseline else {}
    f(**how | place())   # as it is it ends well
    unread = [k for k in names if not reads(lambda **one: f(**how | place() | one), k)]
    assert unread == []
