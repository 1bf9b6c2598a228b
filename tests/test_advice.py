"What would help: each piece of advice exactly where the figures support it, and commands that can be typed"
import inspect, re, shlex, sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch

from fastbit.baseline import baseline
from fastbit.baseline.advice import Commands, ConfusedClasses, RareClasses, RunFigures, half_width, images_to_halve, mistake_figures, what_helps
from fastbit.baseline.next_steps import run_commands
from fastbit.baseline.settings import changed_command, source_command, without_options
from fastbit.config import DataOptions, TableOptions
from fastbit.studies import check_data, leaderboard
from fastbit.cli.parser import make_parser
from fastbit.metrics.intervals import Interval, wilson_interval
from fastbit.report import Findings, make_report
from fastbit.report.headline import accuracy_sentence, baseline_sentences, guessing, interval_words, worst_class
from fastbit.training.curve import CURVE_IMAGES, FOLDS_OF_CURVE, LearningCurve, doubling_gains, nested_ranks, probe_curve
from conftest import TINY, write_folder


def curve(low, high, last=.8): return LearningCurve((100, 200, 400), (.6, .7, last), 500, Interval(low, high), 1.)


def typed(**changes): return ' '.join(['fastbit baseline photos', *(f'--{k.replace("_", "-")} {v}' for k, v in changes.items())])


def without(*names): return lambda **changes: '' if set(names) & set(changes) else typed(**changes)


COMMANDS = Commands(without('folds', 'balance'), 'fastbit check photos', leaderboard=lambda **options: ' '.join(['fastbit leaderboard photos', *(f'--{k} {v}' for k, v in options.items())]))
ALL = replace(COMMANDS, rerun=typed)
MANY = RunFigures(n=10_000, n_right=9_999, n_train=40_000, n_all=50_000, commands=COMMANDS)   # nothing to say


def kinds(**changes): return [a.kind for a in what_helps(replace(MANY, **changes))]


def test_a_precise_run_with_hardly_a_mistake_needs_nothing(): assert kinds() == []


@pytest.mark.parametrize('kind, yes, no', [
    ('groups', dict(grouped=(.9, .8)), dict()),
    ('groups', dict(group_like='patient'), dict()),
    ('images', dict(curve=curve(.02, .04)), dict(curve=curve(-.01, .04))),
    ('enough', dict(curve=curve(-.005, .01)), dict(curve=curve(-.005, .03))),     # little, or anything
    ('images', dict(curve=curve(.02, .04)), dict(curve=curve(.02, .04), n_right=10_000)),
    ('labels', dict(suspects=3, expected=1.), dict(suspects=3, expected=2.)),
    ('pair', dict(n_right=9_990, pair=ConfusedClasses('a', 'b', 3)), dict(n_right=9_990, pair=ConfusedClasses('a', 'b', 2))),
    ('pair', dict(n_right=9_990, pair=ConfusedClasses('a', 'b', 3)), dict(n_right=9_980, pair=ConfusedClasses('a', 'b', 3))),   # of ten mistakes, of twenty
    ('overfitting', dict(overfitting='validation loss rose from 0.4 (evaluation 2 of 4) to 0.6'), dict()),
    ('body', dict(n_right=9_997), dict(n_right=9_998)),
    ('body', dict(n_right=9_997), dict(n_right=9_997, n_bodies=1)),   # a leaderboard would compare it with itself
    ('balance', dict(commands=ALL, rare=RareClasses(('a',), 5, 20, 90, 100)), dict(commands=ALL, rare=RareClasses(('a',), 17, 20, 90, 100))),   # this may be chance
    ('balance', dict(commands=ALL, rare=RareClasses(('a',), 5, 20, 90, 100)), dict(rare=RareClasses(('a',), 5, 20, 90, 100))),   # no such option
    ('balance', dict(commands=ALL, rare=RareClasses(('a',), 5, 20, 90, 100)), dict(commands=ALL, rare=RareClasses(('a',), 0, 0, 90, 100))),
    ('balance', dict(commands=ALL, rare=RareClasses(('a',), 5, 20, 90, 100)), dict(commands=ALL, rare=RareClasses(('a',), 5, 20, 90, 100), balance='loss')),   # it is set
    ('measure', dict(n=100, n_right=99), dict(n=10_000, n_right=9_999))])
def test_each_kind_appears_exactly_where_the_figures_support_it(kind, yes, no):
    assert kind in kinds(**yes) and kind not in kinds(**no)


def test_the_largest_gain_comes_first_and_there_are_at_most_five():
    figures = RunFigures(n=200, n_right=160, n_train=800, n_all=1000, commands=ALL, curve=curve(.02, .03), suspects=6, pair=ConfusedClasses('a', 'b', 30),
                         overfitting='validation loss rose', rare=RareClasses(('a', 'b'), 2, 20, 158, 180))
    found = what_helps(figures)
    assert len(found) == 5 and [a.points for a in found] == sorted([a.points for a in found], reverse=True) and found[0].kind == 'pair'
    large = replace(figures, curve=curve(.15, .25))
    assert what_helps(large)[0].kind == 'images'
    # where fine-tuning has a quarter of the probe's mistakes, it gains a quarter
    few = replace(large, n_right=190, curve=curve(.15, .25, last=.8))
    gain = next(a.points for a in what_helps(few) if a.kind == 'images')
    assert gain == pytest.approx(20*.05/.2)


def test_a_perfect_score_on_twenty_images_says_measure_and_nothing_else():
    for c in (None, curve(.01, .02), curve(0, 0)):
        found = what_helps(RunFigures(n=20, n_right=20, n_train=80, n_all=100, curve=c, commands=COMMANDS))
        assert [(a.kind, a.command) for a in found] == [('measure', 'fastbit baseline photos --valid-pct 0.44')]


@pytest.mark.parametrize('changes, words, command', [
    (dict(), 'with 405 held-out images (now 100)', 'fastbit baseline photos --valid-pct 0.41'),
    (dict(n_all=500, n_train=400), 'with 405 held-out images (now 100)', ''),                      # most would be held out
    (dict(n_all=500, n_train=400, commands=ALL), 'Measure on all 500 images by cross-validation: about ±4 points instead of ±8', 'fastbit baseline photos --folds 5'),
    (dict(n_all=100, n_train=80, commands=ALL, in_folds=True), 'with 405 images (now 100)', ''),                     # of cross-validation already
    (dict(part='test'), 'with 405 held-out images', 'fastbit baseline photos --test-pct 0.41'),
    (dict(drawn=False), 'with 405 held-out images', ''),                                           # a split of the data's own
    (dict(n_groups=10, effective=25.), 'with about 422 held-out images of 43 groups (now 100 of 10)', 'fastbit baseline photos --valid-pct 0.43')])
def test_how_many_images_would_halve_the_interval(changes, words, command):
    figures = replace(RunFigures(n=100, n_right=80, n_train=900, n_all=1000, commands=COMMANDS), **changes)
    found = next(a for a in what_helps(figures) if a.kind == 'measure')
    assert words in found.text and found.command == command


@pytest.mark.parametrize('right, n', [(0, 1), (1, 1), (20, 20), (50, 100), (97, 100), (1, 1000)])
def test_the_width_is_wilsons_and_is_halved(right, n):
    ci = wilson_interval(right, n)
    assert half_width(right/n, n) == pytest.approx((ci.high - ci.low)/2, abs=1e-6)
    more = images_to_halve(right/n, n)
    assert half_width(right/n, more) == pytest.approx(half_width(right/n, n)/2, rel=1e-3)


@pytest.mark.parametrize('low, high, words', [(.031, .064, '3 to 6 points'), (.01, .05, '1 to 5 points'), (.002, .013, '0.2 to 1.3 points')])
def test_a_band_has_the_digits_that_it_deserves(low, high, words):
    assert f'would gain {words} (linear probe)' in what_helps(replace(MANY, curve=curve(low, high)))[0].text


def test_figures_of_mistakes():
    probs = torch.full((30, 3), .005); probs[:, 0] = .99
    targs = torch.tensor([0]*24 + [1]*5 + [2])
    found = mistake_figures(probs, targs, ['x', 'y', 'z'], [50, 40, 5], groups=[i//5 for i in range(30)])
    assert (found['n'], found['n_right'], found['suspects'], found['pair']) == (30, 24, 6, ('x', 'y', 5))
    assert found['expected'] == pytest.approx(.3, abs=.01) and found['rare'] == (('z',), 0, 1, 24, 29)
    assert found['n_groups'] == 6 and found['effective'] < 15   # groups are right or wrong as a whole
    pairs = mistake_figures(probs, targs, ['x', 'y', 'z'], [50, 40, 5], groups=[i//5 for i in range(30)], named=False, worth=.5)
    assert pairs['n_groups'] is None and pairs['effective'] == found['effective']/2   # near-duplicates are no groups to ask for
    even = mistake_figures(probs, torch.zeros(30, dtype=torch.long), ['x', 'y', 'z'], [50, 40, 20])
    assert (even['pair'], even['rare'], even['suspects']) == (None, None, 0)


# Commands

@pytest.fixture
def on_the_command_line(monkeypatch):
    def start(*words): monkeypatch.setattr(sys, 'argv', ['/usr/bin/fastbit', *words])
    return start


SETTINGS = dict(path='my photos', recipe='auto', out='results', keep_best=None, **asdict(TableOptions()), **asdict(DataOptions()))


def test_commands_can_be_typed_back(on_the_command_line):
    on_the_command_line('baseline', 'my photos', '--out=here', '--valid-pct', '.3', '--overwrite', '--no-flip', '--seed', '3')
    for changes in (dict(valid_pct=.41), dict(keep_best='valid_loss')):
        program, *words = shlex.split(changed_command(SETTINGS, **changes))
        args = vars(make_parser().parse_args(words))
        assert program == 'fastbit' and args['path'] == 'my photos' and args['seed'] == 3 and args['flip'] is False
        assert not args.get('overwrite') and not args.get('out') and {k: args[k] for k in changes} == changes
    assert changed_command(SETTINGS, no_such_option=1) == ''
    _, *words = shlex.split(changed_command(SETTINGS, folds=5))   # `--folds` and `--valid-pct` exclude each other
    assert 'valid_pct' not in vars(make_parser().parse_args(words)) and '--folds 5' in shlex.join(words)
    assert changed_command(SETTINGS, group='REGEX').endswith('--group-regex REGEX')
    # a column that may name groups is in each command that draws a split
    known = run_commands(SETTINGS, 'patient id')
    assert known.rerun(folds=5).endswith("--group-col 'patient id' --folds 5") and known.rerun(group='REGEX').endswith('--group-regex REGEX')
    assert "--group-col 'patient id'" in known.leaderboard() and 'group-col' not in known.check
    for command in (known.rerun(folds=5), known.leaderboard()): make_parser().parse_args(shlex.split(command)[1:])
    for command in ('check', 'leaderboard'):
        program, *words = shlex.split(source_command(dict(SETTINGS, label_col='kind of'), command, 'f'))
        args = vars(make_parser().parse_args(words))
        assert (args['command'], args['path'], args['label_col']) == (command, 'my photos', 'kind of')
    assert source_command(dict(SETTINGS, path='digits'), 'check', 'f') == 'fastbit check'


GIVEN = dict(valid_pct=.3, test_pct=.1, seed=3, k_per_class=5, time='exif', allow_copies=True, crop=False, flip=False, augment='strong', jitter=False, max_value=4095, balance='loss')


@pytest.mark.parametrize('command, function', [('check', check_data), ('leaderboard', leaderboard)])
def test_other_commands_take_the_options_of_the_run(on_the_command_line, command, function):
    "Those that they have, and all of these"
    parser = make_parser()
    words = ['baseline', 'my photos', *'--group-regex x --folds 5 --fold 2 --full-decode --resize pad'.split(), '--label-col', 'kind of']
    given = {k: v for k, v in vars(parser.parse_args(words)).items() if k in {**asdict(DataOptions()), **asdict(TableOptions())}} | GIVEN
    call = source_command(SETTINGS | given, command, function.__name__)   # this is Python
    taken = eval(call.replace(function.__name__, 'dict', 1).replace("'my photos'", 'path=0'))
    assert {*taken} <= {*inspect.signature(function).parameters}
    on_the_command_line(*words)
    args = vars(parser.parse_args(shlex.split(source_command(SETTINGS | given, command, function.__name__))[1:]))
    able = {a.dest for a in parser.commands[command]._actions}
    for k, v in given.items(): assert (args[k] == v == taken[k]) if k in able else k not in args and k not in taken, k


def test_a_rerun_with_folds_has_no_option_that_they_exclude(on_the_command_line):
    for words in ('--fold 2 --folds 3', '--fold=2 --valid-pct 30', '--time-limit 10m', '--time-limit=10m', '--budg 10m --valid .3', '--budget 1h --folds=3'):
        on_the_command_line('baseline', 'photos', *words.split(), '--images-per-class', '4')
        args = vars(make_parser().parse_args(shlex.split(changed_command(SETTINGS, folds=5))[1:]))
        assert args['folds'] == 5 and args['k_per_class'] == 4 and not {'fold', 'budget', 'valid_pct'} & {*args}, words
    assert without_options(['--k-per-class', '3', '--images-per-class=3', '--images', '3', '--fold', '1', '--folds', '3'], dict(k_per_class=True, folds=True)) == ['--fold', '1']


def test_in_python_they_are_calls(folder):
    res = baseline(folder, **TINY, size=32, num_workers=0, recipe='head', verbose=False)
    commands = run_commands(res.settings)
    for call in (commands.rerun(valid_pct=.4), commands.check, commands.leaderboard(size=32)):
        name, args = re.fullmatch(r'(\w+)\((.*)\)', call).groups()
        taken = eval(f'dict(path={args})')
        assert taken['path'] == str(folder) and name in ('baseline', 'check_data', 'leaderboard') and 'out' not in taken
    assert 'valid_pct=0.4' in commands.rerun(valid_pct=.4)
    assert res.advice and all(not a.command or a.command.split('(')[0] in ('baseline', 'check_data', 'leaderboard', 'rank_to_label') for a in res.advice)
    page = re.sub('</?span>', '', res.report().html)
    assert all(f'<code>{a.command}</code>' in page.replace('&#39;', "'") for a in res.advice if a.command)
    lines = str(res).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith('would help'))
    assert len([line for line in lines[first:] if line.startswith(('would help', ' '))]) <= 3


def test_options_of_one_run_are_dropped_however_they_are_spelt():
    words = ['baseline', 'a', '--out', 'x', '--out=y', '--overwrite', '--seed', '1', '--valid-pct=.3']
    assert without_options(words, dict(out=True, overwrite=False, valid_pct=True)) == ['baseline', 'a', '--seed', '1']


# The learning curve

def test_subsets_are_nested_seeded_and_by_class():
    y = np.repeat([0, 1, 2], [100, 40, 8])
    ranks = nested_ranks(y, seed=5)
    assert (ranks == nested_ranks(y, seed=5)).all() and (ranks != nested_ranks(y, seed=6)).any() and ranks.min() >= 0 and ranks.max() < 1
    for share in (.25, .5): assert (np.bincount(y[ranks < share]) == share*np.array([100, 40, 8])).all()
    assert set(np.flatnonzero(ranks < .25)) < set(np.flatnonzero(ranks < .5))


def test_groups_stay_whole_and_keep_the_proportions():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 600)
    y = (groups % 3 == 0).astype(int)
    ranks = nested_ranks(y, groups, 1)
    assert all(len(set(ranks[groups == g])) == 1 for g in range(60))
    assert abs(y[ranks < .5].mean() - y.mean()) < .1 and abs((ranks < .5).mean() - .5) < .1


def noisy(n, rng, shift=3., d=200):
    y = rng.integers(0, 3, n)
    return (rng.normal(0, 1, (n, d)) + shift*np.eye(d)[y]).astype(np.float32), y


def test_a_curve_is_seeded_and_fast():
    x, y = noisy(240, np.random.default_rng(0))
    one, two, other = (probe_curve(x, y, seed=s) for s in (0, 0, 1))
    assert one.twice == two.twice and one.twice != other.twice and one.images == (48, 96, 192) and one.n == 240
    assert list(one.accuracies) == sorted(one.accuracies) and 0 < one.twice.low < one.twice.high < .2
    some = probe_curve(x, y, n=2000)   # of 2,000 images, whose curve is flatter
    assert some.n == 2000 and some.twice.high < one.twice.high


def test_images_of_a_group_are_not_tested_by_their_own_kind():
    "Ten copies of each image would be recognized by their copies, and cross-validation would call it skill"
    x, y = noisy(60, np.random.default_rng(1), shift=0)
    x, y, groups = np.repeat(x, 10, 0), np.repeat(y, 10), np.repeat(np.arange(60), 10)
    alone, together = probe_curve(x, y), probe_curve(x, y, groups)
    assert alone is None and together.accuracies[-1] < .55   # without a mistake there is no curve
    assert together.twice.low < 0 < together.twice.high


def test_too_little_to_tell():
    x, y = noisy(200, np.random.default_rng(2), shift=20)
    assert probe_curve(x, y) is None                     # no mistakes
    assert probe_curve(x[:12], y[:12]) is None           # four per class
    x, y = noisy(200, np.random.default_rng(2))
    assert probe_curve(x, y, np.arange(200) % 12) is None   # four groups per class
    assert probe_curve(x, y, n=10**6) is None            # 160 images say nothing about a million


def test_the_band_holds_power_laws_and_what_they_flatten_to():
    "Over 1,000 draws of curves of 400 tested images, with and without a floor: 90% or more"
    rng, shares = np.random.default_rng(0), np.array([.25, .5, 1.])
    for slope, floor in ((.5, 0.), (.3, 0.), (.4, .05)):
        error = lambda m: floor + .25*m**-slope
        truth = error(1.25) - error(2.5)
        held, w = 0, rng.multinomial(400, np.full(400, 1/400), 200)/400
        for _ in range(1000):
            u = rng.random(400)[:, None]                 # an image that a small probe gets right, a larger one usually does, too
            flip = rng.random((400, 3)) < .1
            wrong = np.where(flip, rng.random((400, 3)), u) < error(shares)
            lower, upper = doubling_gains(w@wrong, 1.25)
            held += np.quantile(lower, .05) <= truth <= np.quantile(upper, .95)
        assert held >= 900, (slope, floor, held)


# The head of the report

@pytest.mark.parametrize('right, n, ends', [(14, 24, '39% and 76%'), (24, 24, '86% and 100%'), (1, 1, '21% and 100%'), (0, 5, '0% and 43%'), (9700, 10_000, '96.6% and 97.3%')])
def test_a_manager_reads_the_interval(right, n, ends):
    said = accuracy_sentence(*wilson_interval(right, n), n)
    images = '1 held-out image)' if n == 1 else f'{n} held-out images)'
    assert said == f'Between {ends} of new images like these will be classified correctly (95% confidence interval, measured on {images}.'


def test_a_test_set_and_groups_are_named():
    assert 'measured on 24 test images)' in accuracy_sentence(.5, .8, 24, 'test')
    said = accuracy_sentence(.5, .8, 24, n_groups=6)
    assert 'of images of new groups, such as patients or places that the model has not seen, will' in said and '24 held-out images of 6 groups)' in said


def test_what_guessing_scores():
    assert guessing(['a', 'b', 'b'], ['a', 'a', 'b']) == ('a', pytest.approx(1/3))   # the class that is known to be frequent
    assert guessing(['a', 'b', 'b']) == ('b', pytest.approx(2/3))
    assert guessing(['a'], ['b']) == ('b', 0)
    assert baseline_sentences('b', .125) == 'For comparison: always answering “b”, the most frequent class, 12.5%.'
    assert baseline_sentences('b', .125, .58, on_validation=True).endswith('a classifier on frozen features, 58.0% (on the validation images).')


def learner(dls): return SimpleNamespace(dls=dls, model=torch.nn.Linear(2, 2), history=SimpleNamespace(epochs=pd.DataFrame(), steps=pd.DataFrame()), loss_func=None)


@pytest.mark.parametrize('preds', [[0, 1, 2, 0], [0, 0, 0, 0], [0, 1, 1, 0]])
def test_a_page_without_any_optional_part(preds):
    "A learner of unknown loaders: no table, files, plan, curves, advice or temperature; the last class has one image, or none"
    found = Findings(learn=learner(SimpleNamespace(vocab=['cat', 'dog', 'fox', 'owl'], loaders=[])), probs=torch.eye(4)[preds]*.9 + .025, targs=torch.tensor([0, 1, 2, 0]), paths=[])
    page = make_report(found).html
    for absent in ('What would help', 'Most confused classes', 'Learning curve', '<h2>Data', '<h2>Training'): assert absent not in page, absent
    assert ('No image was misclassified' in page) is False   # there is no section on mistakes without files and pairs
    assert 'new images like these' in page and 'always answering “cat”' in page.replace('&#34;', '"')
    assert f'{found.evaluation.accuracy:.1%} accuracy (95% CI {interval_words(found.evaluation.low, found.evaluation.high)})' in page


def test_pairs_that_were_confused_once_are_not_shown():
    dls = SimpleNamespace(vocab=['cat', 'dog', 'fox'], loaders=[])
    pages = []
    for preds in ([0, 0, 0, 2], [0, 0, 2, 2]):   # two dogs are cats; one is a cat, and one a fox
        found = Findings(learn=learner(dls), probs=torch.eye(3)[preds]*.9 + .03, targs=torch.tensor([0, 1, 1, 2]), paths=[])
        pages.append('Most confused classes' in make_report(found).html)
    assert pages == [True, False]


def test_the_worst_class_has_images():
    rows = pd.DataFrame({'class': ['none', 'few', 'many'], 'images': [0, 1, 9], 'recall': [float('nan'), 0., 0.]})
    assert worst_class(rows)['class'] == 'many' and worst_class(rows[:1]) is None


def test_advice_is_on_the_page_and_in_the_record(tmp_path):
    import json
    data = write_folder(tmp_path/'data', dict(blue=14, green=14, red=12))
    res = baseline(data, **TINY, size=32, num_workers=0, recipe='head', verbose=False, out=tmp_path/'out')
    saved = json.loads((tmp_path/'out'/'results.json').read_text())
    assert [a['text'] for a in saved['advice']] == [a.text for a in res.advice] and 'learning_curve' in saved
    assert 'What would help' in (tmp_path/'out'/'report.html').read_text()


def test_larger_images_are_advised_where_files_have_more_pixels():
    kinds = lambda **changes: {a.kind: a for a in what_helps(replace(RunFigures(n=400, n_right=380, n_train=900, n_all=1300, commands=COMMANDS), **changes))}
    found = kinds(size=64, side=480)
    assert found['size'].command == 'fastbit leaderboard photos --size 128 --top 0' and found['body'].command == 'fastbit leaderboard photos --size 64'
    assert '480 pixels or more on the shorter side, and the model sees 64' in found['size'].text
    assert 'size' not in kinds(size=64, side=90) and 'size' not in kinds(size=64) and 'size' not in kinds(size=64, side=480, n_right=399)


def test_unlabeled_images_are_ranked_where_there_are_results():
    more = lambda commands: next(a for a in what_helps(RunFigures(n=104, n_right=84, n_train=416, n_all=520, curve=curve(.03, .06), commands=commands)) if a.kind == 'images')
    ranked = more(replace(COMMANDS, label_next='fastbit label-next out FOLDER'))
    assert ranked.line.endswith('how much their labels would help: fastbit label-next out FOLDER') and not ranked.again
    plain = more(COMMANDS)
    assert plain.again and plain.line == plain.text and plain.command == 'fastbit baseline photos'


def test_only_groups_that_names_hold_are_advised_by_an_expression():
    from fastbit.data.groups import NamedGroups
    at_random, named = what_helps(replace(MANY, commands=ALL, grouped=(.9, .8)))[0], NamedGroups('([a-z]+)_', 12, 'clip')
    assert at_random.command == '' and 'group_col= (--group-col)' in at_random.text
    known = what_helps(replace(MANY, commands=ALL, grouped=(.9, .8), named_groups=named))[0]
    assert '([a-z]+)_' in known.command and '12 groups, e.g. “clip”' in known.text
