"What fastbit says is so: promises with their conditions, names, ties, and remedies that work when they are typed"
import json, re, shlex, warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd, pytest, torch
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, RandomSplitter, Resize, get_image_files, parent_label

from fastbit.baseline import baseline, parse_budget
from fastbit.baseline.settings import run_command
from fastbit.core.checks import check_out
from fastbit.cli.command import main
from fastbit.cli.messages import in_shell
from fastbit.data import digits_table, image_dataloaders
from fastbit.studies import compare_runs, few_shot_curve, Leaderboard, leaderboard
from fastbit.training import transfer_learner
from fastbit.core.machine import Machine, _cpu_model, this_machine
from fastbit.cli.parser import make_parser
from fastbit.config import RECIPES
from fastbit.core.text import format_seconds
from fastbit.report.findings import data_name
from fastbit.bodies import weights_source
from conftest import TINY, write_folder

ROOT = Path(__file__).parents[1]
PX = dict(size=32, num_workers=0)
NO_VIEWS = dict(flip=False, crop=False)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "(folder, where its results are, the result) of the head on data without flips and crops"
    root = tmp_path_factory.mktemp('said')
    data = write_folder(root/'photos', dict(blue=6, green=6, red=6))
    out = root/'results'
    return data, out, baseline(data, **TINY, **PX, **NO_VIEWS, recipe='head', epochs=2, verbose=False, out=out)


# The same seed

def test_the_machine_and_its_threads_are_recorded(run):
    _, out, res = run
    found, here = json.loads((out/'results.json').read_text())['machine'], this_machine()
    assert found == dict(device='cpu', threads=torch.get_num_threads(), cpu=here.cpu, capability=torch.backends.cpu.get_cpu_capability(), gpu='')
    assert str(here) in (out/'report.html').read_text()


def test_the_plan_names_the_threads(run):
    plan = run[2].plan
    for threads, words in ((1, 'on cpu, 1 thread, from'), (8, 'on cpu, 8 threads, from')):
        assert words in str(replace(plan, machine=replace(plan.machine, threads=threads)))
    gpu = Machine('cuda:0', 8, 'CPU', 'AVX2', 'GPU')
    assert 'on cuda:0, bf16, from' in str(replace(plan, device='cuda:0, bf16', machine=gpu)) and str(gpu) == 'cuda:0, GPU, 8 threads, CPU (AVX2)'


@pytest.mark.parametrize('text, model', [
    ('processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some CPU @ 2.0 GHz\n', 'Some CPU @ 2.0 GHz'),
    ('processor\t: 0\nBogoMIPS\t: 50.00\n', None), (None, None)])   # ARM's kernel names no model, and not every system has the file
def test_the_model_of_the_cpu(tmp_path, text, model):
    if text: (tmp_path/'cpuinfo').write_text(text)
    found = _cpu_model(tmp_path/'cpuinfo')
    assert found == model if model else found


def _texts():
    "(where, text) of all that makes promises: pages, modules, README"
    for p in sorted((ROOT/'nbs').rglob('*.ipynb')):
        for c in json.loads(p.read_text())['cells']: yield p.name, ' '.join(''.join(c['source']).split())
    yield 'README.md', ' '.join((ROOT/'README.md').read_text().split())


def test_the_promise_names_its_condition():
    promises = [(where, text[m.start():m.end()+60]) for where, text in _texts() for m in re.finditer(r'same seed gives the same (numbers|results)', text)]
    assert {w for w, _ in promises} >= {'README.md', 'index.ipynb', '07_run.ipynb', '04_machine.ipynb'}
    assert not [o for o in promises if 'on the same machine with the same number of threads' not in o[1]]
    assert 'same numbers' not in make_parser().format_help()


def test_as_many_recipes_as_there_are():
    words = dict(two=2, three=3, four=4)
    said = [(where, words[m[1]]) for where, text in _texts() for m in re.finditer(r'\b(two|three|four) \[?recipes', text)]
    assert said and all(n == len(RECIPES) for _, n in said), said


# Where results go

@pytest.mark.parametrize('change, same', [({}, True), (dict(num_workers=1, cache=False), True), (dict(seed=1), False), (dict(epochs=3), False)])
def test_a_finished_run_is_called_one(run, change, same):
    data, out, _ = run
    asked = dict(TINY, **PX, **NO_VIEWS, recipe='head', epochs=2, verbose=False) | change
    with pytest.raises(ValueError) as e: baseline(data, out=out, **asked)
    words = ' with these settings' if same else ''
    assert str(e.value) == f"{out}/ already contains a finished run{words} (see {out/'report.html'}). Choose another out=, or replace it with overwrite=True."


def test_on_the_command_line_it_is_an_option(run, capsys):
    data, out, _ = run
    assert main(['baseline', str(data), '--arch', TINY['arch'], '--weights', 'random', '--out', str(out)]) == 2
    assert capsys.readouterr().err == f"fastbit: error: {out}/ already contains a finished run (see {out/'report.html'}). Choose another --out, or replace it with --overwrite.\n"


def test_a_run_without_a_page_and_a_file_of_somebody_else(tmp_path):
    (tmp_path/'results.json').write_text(json.dumps(dict(versions=dict(fastbit='0'), settings={})))
    with pytest.raises(ValueError, match=r'finished run \(see .*results\.json\)'): check_out(tmp_path, dict(seed=0))   # one that diverged
    for text in ('[]', '{"accuracy": 1}', 'no json', '{"versions": 3}'):
        (tmp_path/'results.json').write_text(text)
        with pytest.raises(ValueError, match='is not from fastbit and would be overwritten'): check_out(tmp_path, dict(seed=0))


def test_others_that_write_into_folders(run, tmp_path):
    data, out, _ = run
    with pytest.raises(ValueError, match='already contains a finished run'): leaderboard(data, [f"{TINY['arch']}=random"], out=out, verbose=False)
    (tmp_path/'sub').mkdir()
    for asked, message in (('few.html', r"give the CSV file, .*few\.csv"), ('sub', r'is a folder; give a CSV file in it'), ('none/few.csv', 'is not a folder that can be written to')):
        with pytest.raises((ValueError, OSError), match=message): few_shot_curve(data, out=tmp_path/asked)


# Ties

def _board(*rows):
    "(accuracy, behind, behind_low, behind_high, failed) each, 80 images"
    columns = ['accuracy', 'behind', 'behind_low', 'behind_high', 'failed']
    df = pd.DataFrame(rows, columns=columns).assign(why='', low=.5, high=.99, loss=.3, images_s=90., params_m=1., disk_mb=4., seconds=3., test_accuracy=float('nan'), test_low=float('nan'), test_high=float('nan'))
    df = df.assign(score=df.accuracy, score_low=.5, score_high=.99, test_score=float('nan'), body=[f'lite{i}' for i in range(len(df))], recipe='probe')
    return Leaderboard(df, 'photos', 80, '' if rows[0][-1] else 'lite0, probe')


@pytest.mark.parametrize('rows, standing', [
    ([(.9, 0, 0, 0, '')], 'is the only run'),
    ([(.9, 0, -.02, .02, ''), (.9, 0, -.03, .03, ''), (.5, -.4, -.5, -.3, '')], 'ties with lite1, probe'),
    ([(.9, 0, -.02, .02, ''), (.88, -.02, -.06, .02, ''), (.87, -.03, -.07, .01, '')], 'has the highest accuracy, not significantly above lite1, probe and 1 more'),
    ([(.9, 0, -.02, .02, ''), (.6, -.3, -.4, -.2, '')], 'is significantly ahead'),
    ([(.9, 0, -.02, .02, ''), (float('nan'),)*4 + ('no weights',)], 'is the only run')])
def test_who_is_ahead(rows, standing):
    board = _board(*rows)
    assert board.standing() == standing and f'</b>{standing}<br>' in board.html()
    several = standing != 'is the only run'
    assert ('the best of several' in str(board)) is several and ('If the interval includes 0, the difference is not significant.' in board.html()) is several
    assert 'rows of equal accuracy by loss' in str(board)


def test_a_board_of_failures_has_nobody_ahead():
    html = _board((float('nan'),)*4 + ('no weights',)).html()
    assert 'Every run failed' in html and 'ahead' not in html


def test_equal_accuracy_is_ranked_by_loss_then_by_the_order_of_the_call(tmp_path):
    from fastbit.studies.trials import rank_rows, run_name
    row = lambda body, loss: dict(body=body, recipe='probe', score=.5, loss=loss, failed='')
    rows = [row('b', .4), row('c', .3), row('a', .3)]
    for r in rows:
        folder = tmp_path/'runs'/run_name(r['body'], 'probe')
        folder.mkdir(parents=True)
        pd.DataFrame(dict(path=['1.png', '2.png'], split='valid', label=['x', 'y'], prediction=['x', 'x'])).to_csv(folder/'predictions.csv', index=False)
    df = rank_rows(rows, tmp_path)
    assert df.body.tolist() == ['c', 'a', 'b'] and (df.behind == 0).all()


def test_runs_with_the_same_predictions_are_called_so(run):
    same = compare_runs(run[2], run[1])   # the result, and what it wrote
    assert same.identical and 'identical predictions' in str(same) and 'better' not in str(same)
    frame = pd.DataFrame(dict(path=['1.png', '2.png'], label='red', prediction='blue'))
    differs = compare_runs(frame, frame.assign(prediction='green'))   # both wrong everywhere, in other ways
    assert differs.difference == 0 and not differs.identical and 'not significant' in str(differs)


# Test-time augmentation that did not run

def test_tta_that_never_ran_is_not_reported(run):
    _, out, res = run
    assert res.tta is None and res.views == ('identity',) and list(res.gain.index) == ['plain']
    assert 'TTA         not used: flips and crops are disabled for this data' in str(res)
    assert json.loads((out/'results.json').read_text())['tta'] is None
    assert 'Test-time augmentation</h3>' not in (out/'report.html').read_text()


def test_the_learner_says_so_too(run, capsys):
    learn = run[2].learn
    learn.tta()
    said = capsys.readouterr().out
    assert said.count('plain: accuracy') == 1 and 'TTA: ' not in said and said.endswith('TTA was not used: flips and crops are disabled for this data.\n')
    learn.tta(views='identity')   # as was asked for
    assert 'not used' not in capsys.readouterr().out


@pytest.mark.filterwarnings('always:tta=True')
def test_nor_for_a_model_of_such_data(run, tmp_path, capsys):
    data, out, _ = run
    assert main(['predict', str(out), str(data/'red'), '--tta']) == 0
    assert capsys.readouterr().err == 'fastbit: note: --tta changes nothing here: the model was trained without flips and crops, so there are no other views.\n'
    assert main(['predict', str(out), str(data/'red')]) == 0 and not capsys.readouterr().err


def test_tta_that_ran_is_reported(folder, capsys):
    learn = transfer_learner(image_dataloaders(folder, TINY['arch'], **PX), **TINY)
    learn.tta()
    assert 'TTA: accuracy' in (said := capsys.readouterr().out) and 'not used' not in said and '2 views' in said and '1 view,' in said
    assert 'Test-time augmentation</h3>' in str(learn.report())


# What a report is called

def _titles(folder):
    "(what, loaders, name)"
    px, own = dict(item_tfms=Resize(32), bs=4, num_workers=0), dict(arch=TINY['arch'], **PX)
    df = pd.DataFrame([(str(p), p.parent.name) for p in get_image_files(folder)], columns=['path', 'label'])
    csv = folder.with_name('labels.csv'); df.to_csv(csv, index=False)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(seed=0), item_tfms=Resize(32))
    yield 'folder', image_dataloaders(folder, **own), folder.name
    yield 'csv', image_dataloaders(csv, **own), 'labels.csv'
    yield 'table', image_dataloaders(df, **own), 'table'
    yield 'digits', image_dataloaders(digits_table().groupby('label').head(4), **own), 'digits'
    yield 'fastai folder', ImageDataLoaders.from_folder(folder, valid_pct=.3, **px), folder.name
    yield 'fastai block', block.dataloaders(folder, bs=4, num_workers=0), folder.name   # its path is the working directory
    yield 'fastai table', ImageDataLoaders.from_df(df, path='/', **px), 'table'
    yield 'saves elsewhere', ImageDataLoaders.from_path_func(folder.with_name('models'), get_image_files(folder), parent_label, **px), folder.name


def test_the_data_gives_the_name_not_the_working_directory(folder, tmp_path, monkeypatch):
    (tmp_path/'work').mkdir(); monkeypatch.chdir(tmp_path/'work')
    assert not [(what, found, name) for what, dls, name in _titles(folder) if (found := data_name(dls)) != name]
    monkeypatch.chdir(folder)
    assert data_name(image_dataloaders('.', TINY['arch'], **PX)) == folder.name


def test_the_page_has_that_title(run, tmp_path, monkeypatch):
    _, out, res = run
    monkeypatch.chdir(tmp_path)
    page = str(res.learn.report())
    assert '<h1>photos: ' in page and '<h1>photos: ' in (out/'report.html').read_text()
    assert '<td>command</td>' not in page   # nobody knows what was typed to train it
    assert 'Test-time augmentation</h3>' not in page


# Once in a notebook, once in a terminal

@pytest.fixture(scope='module')
def shell(run, tmp_path_factory):
    from execnb.shell import CaptureShell
    shell = CaptureShell(mpl_format=None)
    shell.user_ns.update(data=run[0], learn=run[2].learn, PX=PX, TINY=TINY, board=tmp_path_factory.mktemp('board'))
    shell.run('from fastbit.all import *\nimport fastcore.imports, warnings; warnings.simplefilter("ignore")')
    yield shell
    shell.close()


CALLS = {   # a call, and what it shows once
    "check_data(data, labels=False)": '18 images, 3 classes',
    "baseline(data, dry_run=True, recipe='head', **TINY, **PX)": 'recipe head, seed 0',
    "learn.evaluate()": 'ECE',
    "learn.tta()": 'plain: accuracy',
    "leaderboard(data, [f\"{TINY['arch']}=random\"], top=0, out=board, **PX)": 'behind the best'}


@pytest.mark.parametrize('notebook', [True, False])
@pytest.mark.parametrize('call', CALLS)
def test_what_a_call_shows_is_not_shown_again_as_its_value(shell, call, notebook):
    shell.run(f'fastcore.imports.IN_NOTEBOOK = {notebook}')
    try:
        outputs = shell.run(f'kept = {call}\nkept')
        values = [o['data'] for o in outputs if o['output_type'] == 'execute_result']
        shown = [str(o['data'].get('text/plain')) for o in outputs if o['output_type'] == 'display_data']
        printed = ''.join(''.join(o['text']) for o in outputs if o['output_type'] == 'stream')
        assert not shell.exc and values == [{}], values
        if notebook and 'tta' not in call: assert len(shown) == 1 and CALLS[call] not in printed
        else: assert not shown and printed.count(CALLS[call]) == 1
        again, = (o for o in shell.run('kept') if o['output_type'] == 'execute_result')
        assert again['data']   # in another cell, as any other value
    finally: shell.run('fastcore.imports.IN_NOTEBOOK = False')


def test_a_copy_and_a_quiet_call_are_displayed(shell):
    outputs = lambda code: [o for o in shell.run(code) if o['output_type'] == 'execute_result' and o['data']]
    assert outputs('learn.evaluate(show=False)') and outputs('import copy\ncopy.copy(learn.evaluate())')
    assert not outputs('learn.evaluate(show=False) and None')


def test_pythons_own_prompt_gets_a_line_and_not_every_row(run):
    for o in (run[2], run[2].plan, _board((.9, 0, 0, 0, ''))): assert repr(o) == f'<{type(o).__name__}; print it>'


# Remedies

@pytest.mark.parametrize('command, said, typed', [
    ('baseline', "valid_pct=20.0: the share lies between 0 and 1, type e.g. valid_pct=0.2.", '--valid-pct 20.0: the share lies between 0 and 1, type e.g. --valid-pct 0.2.'),
    ('baseline', "Take fewer of them: num_workers=1 or 0 (--workers).", 'Take fewer of them: --workers 1 or 0.'),
    ('baseline', "its length is n_steps= (--steps)", 'its length is --steps'),
    ('baseline', "say flip=False or drop_rate=0.1", "say --no-flip or drop_rate=0.1"),   # no option of the command
    ('leaderboard', "in recipes=['x', 'y'].", "in --recipe ['x', 'y']."),
    ('check', "weights='my file.pth': no such file", "--weights 'my file.pth': no such file"),
    ('baseline', "no folder '/data/seed=0/x', 'size=3/b' or a/size=3", "no folder '/data/seed=0/x', 'size=3/b' or a/size=3"),
    ('cache', 'seed=0', 'seed=0')])
def test_the_command_speaks_of_options(command, said, typed): assert in_shell(said, command) == typed


def test_without_weights_each_way_on_can_be_typed(run, monkeypatch, capsys):
    from fastbit.bodies import weights
    monkeypatch.setattr(weights, '_hub_answers', lambda: False)
    assert main(['baseline', str(run[0]), '--arch', 'tf_efficientnet_b3', '--out', 'never']) == 2
    said = capsys.readouterr().err
    ways = re.findall(r'--(?:arch|weights) \S+', said.partition('Use ')[2])
    assert [w.split()[0] for w in ways] == ['--arch', '--arch', '--weights', '--weights']   # the closest in cost, and the default
    for w in ways:
        args = make_parser().parse_args(['baseline', str(run[0]), *shlex.split(w)])
        asked = dict(arch='tf_efficientnet_b3', weights='auto') | vars(args)
        if 'FILE' not in w: weights_source(asked['arch'], asked['weights'])   # finds them


@pytest.mark.filterwarnings('ignore:load_learner')   # what fastai says of pickles
def test_the_copy_of_a_pickle_can_be_made_as_it_says(run, tmp_path):
    from fastai.learner import Learner
    from fastbit.export import load_predictor, save_artifact
    learn, file = run[2].learn, tmp_path/'old.pkl'
    Learner.export(learn, file)
    with pytest.raises(ValueError) as e: load_predictor(file)
    steps = re.search(r'use (p = .*\))\. Then (save_artifact\(.*\)) writes', str(e.value))
    exec(f'{steps[1]}; {steps[2]}', dict(load_predictor=load_predictor, save_artifact=save_artifact, FOLDER=tmp_path/'copy'))
    assert load_predictor(tmp_path/'copy').classes == ('blue', 'green', 'red')


@pytest.mark.parametrize('seconds', [3, 89, 90, 200, 5399, 5400, 9000])
def test_a_time_that_fastbit_writes_is_a_budget(seconds):
    assert abs(parse_budget(format_seconds(seconds)) - seconds) <= (60 if seconds >= 5400 else 0)


@pytest.mark.parametrize('budget', ['', 's', '1d', '3 4', '1h 30', '-5', 'soon', '0'])
def test_what_is_no_time(budget):
    with pytest.raises(ValueError, match='a time'): parse_budget(budget)


def test_the_command_of_a_table_names_a_variable(run):
    settings = dict(run[2].settings, path='DataFrame')
    assert run_command(settings).startswith("baseline(df, arch='test_efficientnet'") and run_command(run[2].settings).startswith(f'baseline({str(run[0])!r}, ')
    defaults = {'arch', 'weights', 'recipe', 'size', 'epochs', 'flip', 'crop', 'num_workers', 'out'}
    assert set(re.findall(r'(\w+)=', run_command(settings))) == defaults   # and nothing that is the default


@pytest.mark.parametrize('recipe, given, message', [
    ('hyperrule', dict(epochs=3), 'epochs applies to the onecycle and head recipes only, not to hyperrule. Set its length with n_steps.'),
    ('hyperrule', dict(views=2), 'views applies to the auto, onecycle and head recipes only, not to hyperrule.'),
    ('onecycle', dict(micro_batch=4), 'micro_batch applies to the hyperrule recipe only, not to onecycle.'),
    ('head', dict(checkpoint_every=3), 'checkpoint_every applies to the auto, onecycle and hyperrule recipes only, not to head.'),
    ('onecycle', dict(mixup=.1), 'mixup applies to the auto and hyperrule recipes only, not to onecycle.'),
    ('fine_tune', {}, "unknown recipe 'fine_tune'. Choose from auto, onecycle, head, hyperrule.")])
def test_an_option_of_another_recipe(run, recipe, given, message):
    with pytest.raises(ValueError) as e: baseline(run[0], recipe=recipe, **given)
    assert str(e.value) == message


@pytest.mark.parametrize('given, words', [
    (dict(item_tfms=None), 'unknown option item_tfms, use size= and resize='), (dict(splitter=None), 'unknown option splitter, use valid_pct= and split_col='),
    (dict(fn_col='file'), 'unknown option fn_col, use path_col='), (dict(sise=32), 'unknown option sise, did you mean size?')])
def test_arguments_of_fastais_functions_are_answered_with_those_that_do_the_same(folder, given, words):
    with pytest.raises(TypeError) as e: image_dataloaders(folder, **given)
    assert str(e.value).endswith(words)


def test_a_name_of_a_metric_is_answered_with_the_nearest_function(folder):
    dls = image_dataloaders(folder, TINY['arch'], size=32, num_workers=0)
    with pytest.raises(TypeError, match="metrics='acuracy'; give the function itself, such as metrics=accuracy"): transfer_learner(dls, **TINY, metrics='acuracy')


def test_a_folder_where_fastai_keeps_weights_is_no_class_without_images(folder):
    (folder/'models').mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert 'models' not in image_dataloaders(folder, TINY['arch'], size=32, num_workers=0).vocab
