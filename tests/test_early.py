"Errors come before the work: before torch is imported on the command line, before images are read in Python"
import os, subprocess, sys

import pytest

from fastbit.baseline import baseline, folder_rule
from fastbit.config import HeadOnly, OneCycle, TrainOptions
from fastbit.core.checks import check_out
from fastbit.data import image_dataloaders, image_table, stream_dataloaders
from fastbit.studies import check_data, few_shot_curve, leaderboard
from fastbit.training import transfer_learner
from conftest import TINY

opened = sys.modules['fastbit.baseline.run']


# --- the command line

WRONG = {   # words after `fastbit` -> what the error says
    'baseline --epochs 0': '--epochs 0', 'baseline --epochs x': 'invalid int', 'baseline --batch-size 0': '--batch-size 0',
    'baseline --bs 0': '--batch-size 0', 'baseline --lr -1': '--lr -1', 'baseline --lr 11': 'between 0 and 10',
    'baseline --size 8': '--size 8: a whole number of pixels, 32 or more', 'baseline --seed -1': '--seed -1 must be a whole number, 0 to',
    'baseline --valid-pct 120': '--valid-pct must be between 0 and 1', 'baseline --test-pct -1': '--test-pct must be',
    'baseline --workers -1': '--workers -1', 'baseline --cache-gb -1': '--cache-gb -1', 'baseline --patience 0': '--patience 0',
    'baseline --images-per-class 0': '--images-per-class 0', 'baseline --head-augment 0': '--head-augment 0',
    'baseline --checkpoint-every 0': '--checkpoint-every 0', 'baseline --max-value 0': '--max-value 0', 'baseline --procs 0': '--procs 0',
    'baseline --bn x': "--bn x; it can be 'frozen'", 'baseline --precision half': '--precision half', 'baseline --resize x': '--resize x',
    'baseline --keep-best f1': '--keep-best f1', 'baseline --recipe magic': "unknown recipe 'magic'",
    'baseline --recipe onecycle --steps 3': '--steps applies to the auto and hyperrule recipes only', 'baseline --label-smoothing 1': '--label-smoothing 1',
    'baseline --epochs 3': 'not to auto. Set its length with --steps.', 'baseline --steps 0': '--steps 0', 'baseline --weights mine.pth': 'no such file',
    'baseline nowhere': "no folder or file 'nowhere'", 'baseline --recipe hyperrule --steps 0': '--steps 0',
    'baseline --recipe hyperrule --mixup -1': '--mixup -1', 'baseline --recipe hyperrule --base-lr 0': '--base-lr 0',
    'baseline --recipe hyperrule --micro-batch 0': '--micro-batch 0', 'baseline --recipe hyperrule --eval-every 0': '--eval-every 0',
    'baseline --recipe hyperrule --lr 0': '--lr 0',
    'leaderboard --top -1': '--top -1', 'leaderboard --recipe x': "unknown recipe 'x'", 'leaderboard --size 3': '--size 3',
    'leaderboard --arch test_efficientnet=mine.pth': '--arch test_efficientnet=mine.pth: no such file or folder',
    'check --size 3': '--size 3', 'check --weights mine.pth': 'no such file', 'check nowhere': 'nowhere',
    'rule --steps 0': '--steps 0', 'rule --stop-after 0': '--stop-after 0', 'rule --seed -1': '--seed -1', 'rule --base-lr 0': '--base-lr 0',
    'rule --batch-scaling preset --batch-size 64': '--batch-scaling preset is --batch-size 128', 'rule --plot x.bmp': '.png, .svg or .pdf',
    'rule --plot /dev/null/x.png': '/dev/null/x.png cannot be written', 'predict nowhere x': "no folder 'nowhere'",
    'predict flowers nowhere': "'nowhere'", 'predict flowers . --batch-size 0': '--batch-size 0', 'evaluate flowers nowhere': 'nowhere',
    'evaluate flowers . --batch-size 0': '--batch-size 0', 'evaluate flowers . --split x': 'invalid choice', 'export flowers net.pt': '.onnx',
    'export flowers /dev/null/net.onnx': '/dev/null/net.onnx cannot be written', 'export nowhere net.onnx': 'nowhere',
    'predict . x': '. is not a fastbit results folder', 'export . net.onnx': '. is not a fastbit results folder'}

MODEL = 'config.json', 'model.safetensors'


def test_what_is_wrong_is_said_in_the_words_typed_before_torch_is_imported(tmp_path):
    code = '''
import contextlib, io, sys
from fastbit.cli.command import main
for words in sys.stdin.read().splitlines():
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try: status = main(words.split())
        except SystemExit as e: status = e.code
    print(status, 'torch' in sys.modules, ' '.join(err.getvalue().split()), flush=True)
'''
    (tmp_path/'flowers').mkdir()
    for name in MODEL: (tmp_path/'flowers'/name).write_text('{}')   # enough to look like a model
    run = subprocess.run([sys.executable, '-c', code], input='\n'.join(WRONG), capture_output=True, text=True, cwd=tmp_path)
    lines = run.stdout.splitlines()
    bad = [(words, line) for (words, said), line in zip(WRONG.items(), lines, strict=True) if said not in line or not line.startswith('2 False fastbit')]
    assert not bad, '\n'.join(map(str, bad))
    assert sorted(p.name for p in tmp_path.rglob('*')) == sorted(['flowers', *MODEL])


# --- Python

EARLY = [   # a call, and what its error says
    (lambda p: baseline(p, train=3), TypeError, 'train=3 is not a TrainOptions. Pass its options by name: size, bn'),
    (lambda p: baseline(p, body='x'), TypeError, "body='x' is not a BodyOptions. Pass its options by name: arch, weights."),
    (lambda p: baseline(p, of_recipe=dict(epochs=3)), TypeError, 'Pass its options by name: batch_size, lr'),
    (lambda p: baseline(p, lr='a'), TypeError, "lr='a' must be a number."), (lambda p: baseline(p, recipe=OneCycle(lr='a')), TypeError, "lr='a' must be a number."),
    (lambda p: baseline(p, cache_gb='a'), TypeError, "cache_gb='a' must be a number."), (lambda p: baseline(p, flip='no'), TypeError, "flip='no' must be True or False."),
    (lambda p: baseline(p, recipe='hyperrule', mixup='a'), TypeError, "mixup='a' must be a number."),
    (lambda p: baseline(p, seed=-1), ValueError, 'seed=-1 must be a whole number'), (lambda p: baseline(p, seed=1.5), ValueError, 'seed=1.5 must be'),
    (lambda p: baseline(p, 'test_efficientnet', 'random', 'head', 3), TypeError, 'baseline(path, arch, weights, recipe, batch_size=3)'),
    (lambda p: image_dataloaders(p, 'test_efficientnet', 32, 8, .2), TypeError, 'image_dataloaders(path, arch, size, bs, valid_pct=0.2)'),
    (lambda p: image_dataloaders(p, draft=512), TypeError, 'draft=512 must be True or False.'), (lambda p: image_dataloaders(p, valid_pct='a'), TypeError, "valid_pct='a' must be a number."),
    (lambda p: image_dataloaders(p, check='no'), TypeError, "check='no' must be True or False."),
    (lambda p: stream_dataloaders(1, 2, ['a', 'b'], 'test_efficientnet', 32, (24, 24)), TypeError, 'stream_dataloaders(train, valid, classes, arch, size, image_size=...)'),
    (lambda p: folder_rule(p, .3), TypeError, 'folder_rule(path, valid_pct=0.3)'),
    (lambda p: leaderboard(p, ['x'], ('head',), 2, 64), TypeError, 'leaderboard(path, archs, recipes, top, size=64)'),
    (lambda p: few_shot_curve(p, (1,), 2, 'test_efficientnet'), TypeError, "few_shot_curve(path, ks, repeats, arch='test_efficientnet')"),
    (lambda p: check_data(p, 'test_efficientnet', 'random', 64), TypeError, 'check_data(path, arch, weights, size=64)'),
    (lambda p: image_table(p, 'root', 'file'), TypeError, "image_table(source, root, path_col='file')"),
    (lambda p: transfer_learner(p, 'test_efficientnet', 'random', None, 'train'), TypeError, "transfer_learner(dls, arch, weights, metrics, bn='train')")]


@pytest.mark.parametrize('call, error, words', EARLY, ids=[e[2][:40] for e in EARLY])
def test_an_argument_that_cannot_be_meant_is_refused_before_the_images_are_read(call, error, words, tmp_path):
    with pytest.raises(error) as e: call(tmp_path/'there-is-nothing')
    assert words in str(e.value)


def test_methods_take_their_options_by_name(folder):
    learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', 32, 8, num_workers=0), **TINY)
    for call, words in (
            (lambda: learn.fit_head(1, 1e-3, 2), 'learn.fit_head(n_epoch, lr, views=2)'),
            (lambda: learn.fit_hyperrule(8, .003, 'linear'), "learn.fit_hyperrule(batch_size, base_lr, scale='linear')"),
            (lambda: learn.fine_tune(1, 2e-3, 1, 100, .3, 5., 'x.safetensors'), "div, checkpoint='x.safetensors')"),
            (lambda: learn.fine_tune(1, sise=3), 'learn.fine_tune() has no argument sise.'),
            (lambda: learn.fit_one_cycle(1, sise=3), 'learn.fit_one_cycle() has no argument sise.')):
        with pytest.raises(TypeError) as e: call()
        assert words in str(e.value) and 'before' not in str(e.value)


def test_records_may_be_given_whole():
    with pytest.raises(ValueError, match='size=8'): image_dataloaders('.', size=8)
    with pytest.raises(TypeError, match='lr=None must be a number'): OneCycle(lr=None)
    with pytest.raises(FileNotFoundError): baseline('nowhere', train=TrainOptions(size=64), **TINY)


def test_a_folder_that_cannot_be_written_to_is_refused_in_a_dry_run(folder, monkeypatch):
    monkeypatch.setattr(opened, 'image_dataloaders', lambda *a, **k: pytest.fail('images were read'))
    places = [p for p in ('/dev/null/out', '/proc/out') if os.path.exists(os.path.dirname(p))]
    for out in places:   # the superuser has every permission in /proc, and cannot make a folder there
        with pytest.raises(OSError, match='cannot be written to'): check_out(out)
        with pytest.raises(OSError, match='cannot be written to'): baseline(folder, out=out, dry_run=True, verbose=False, **TINY)
        with pytest.raises(OSError, match='cannot be written to'): baseline(folder, out=out, dry_run=True, overwrite=True, verbose=False, **TINY)


def test_folders_of_files_are_made(folder, tmp_path, capsys, monkeypatch):
    from fastbit.cli.command import main
    monkeypatch.chdir(tmp_path)
    assert main(['rule', str(folder), '--plot', 'plots/new/rate.png', '--steps', '50']) == 0
    said = capsys.readouterr().out
    assert (tmp_path/'plots'/'new'/'rate.png').stat().st_size > 1000
    assert 'changed from 500: --steps 50' in said and 'n_steps' not in said


# --- weights before images

@pytest.mark.parametrize('weights, error, words', [
    ('hub', FileNotFoundError, 'hub does not answer'), ('auto', FileNotFoundError, 'hub does not answer'),
    ('mine.pth', FileNotFoundError, 'no such file'), ('bundled', FileNotFoundError, 'No installed package')])
def test_weights_are_asked_for_before_the_images(weights, error, words, folder, tmp_path, monkeypatch):
    "A download that fails is found out in seconds, not after a pass over the images"
    asked, real = [], opened.hub_file
    monkeypatch.setattr(opened, 'hub_file', lambda arch: (asked.append(arch), real(arch))[1])
    for name in ('resolve_source', 'image_dataloaders'):
        monkeypatch.setattr(opened, name, lambda *a, **k: pytest.fail('the data were looked at'))
    with pytest.raises(error, match=words): baseline(folder, 'tf_efficientnet_b0', weights, out=tmp_path/'run', verbose=False)
    assert asked == (['tf_efficientnet_b0'] if weights in ('hub', 'auto') else []) and not (tmp_path/'run').exists()


def test_the_command_asks_for_weights_first(tmp_path, monkeypatch, capsys):
    from fastbit.cli.command import main
    for name in ('a', 'b'):   # nothing that can be read, which would be the second error
        (tmp_path/'photos'/name).mkdir(parents=True)
        (tmp_path/'photos'/name/'1.png').write_bytes(b'no image')
    monkeypatch.chdir(tmp_path)
    assert main(['baseline', 'photos', '--arch', 'BiT-M-R50x1', '--out', 'run']) == 2
    assert 'hub does not answer' in capsys.readouterr().err
    assert main(['baseline', 'photos', '--arch', 'test_efficientnet', '--weights', 'random', '--out', 'run']) == 2
    assert 'photos' in capsys.readouterr().err and not (tmp_path/'run').exists()
