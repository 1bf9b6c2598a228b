"The command: what it writes, what it says, and what it does where it may do little"
import json, os, subprocess, sys

import pandas as pd, pytest
from PIL import Image

from conftest import run_fastbit, start_fastbit, write_folder

QUICK = ('--arch', 'test_efficientnet', '--weights', 'random', '--size', 32, '--recipe', 'onecycle', '--epochs', 2, '--bs', 8)
FILES = ['history.csv', 'left_out.csv', 'log.jsonl', 'loss.png', 'model', 'neighbors.safetensors', 'predictions.csv', 'rate.png', 'report.html', 'results.json']


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    "One folder of images and one finished run, for the tests that only look"
    root = tmp_path_factory.mktemp('cli')
    write_folder(root/'data', dict(blue=12, green=12, red=12))
    (root/'data'/'red'/'broken.png').write_text('no picture')
    return root, run_fastbit('baseline', root/'data', *QUICK, '--out', root/'run', '--workers', 0, cwd=root)


def test_a_run_writes_its_results(shared):
    root, run = shared
    assert run.returncode == 0, run.stderr
    out = root/'run'
    assert sorted(p.name for p in out.iterdir()) == FILES
    res, preds, hist = json.loads((out/'results.json').read_text()), pd.read_csv(out/'predictions.csv'), pd.read_csv(out/'history.csv')
    assert list(preds) == ['path', 'split', 'label', 'prediction', 'probability', 'calibrated'] and set(preds.split) == {'valid'} and len(preds) == res['evaluation']['n'] == 7
    assert (preds.label == preds.prediction).mean() == pytest.approx(res['evaluation']['accuracy'])
    assert preds.probability.between(1/3, 1).all() and all(os.path.exists(p) for p in preds.path)
    assert hist.phase.tolist() == ['head', 'all layers'] and hist.epoch.tolist() == [0, 0]
    assert set(hist) == {'phase', 'epoch', 'train_loss', 'valid_loss', 'accuracy', 'step', 'lr', 'seconds'}
    assert res['plan']['n_left_out'] == 1 and pd.read_csv(out/'left_out.csv').reason.item() == 'not an image that Pillow can read'
    for name in ('loss.png', 'rate.png'):
        with Image.open(out/name) as img: assert min(img.size) > 300


def test_what_it_says(shared):
    root, run = shared
    lines = run.stdout.splitlines()
    assert [o.split()[0] for o in lines[:3]] == ['data', 'model', 'time'] and all(len(o) < 80 for o in lines[:3])
    assert 'about' in lines[2] and '1 skipped' in lines[0] and sum(o.startswith('head:') for o in lines) == 1
    assert lines[-2].split() == ['report', str(root/'run'/'report.html')]
    assert lines[-1] == f'next        fastbit serve {root/"run"}, fastbit predict {root/"run"} IMAGES'
    last = json.loads((root/'run'/'results.json').read_text())['evaluation']
    assert f"accuracy    {last['accuracy']:.2%} (95% CI" in run.stdout and 'on 7 held-out images' in run.stdout
    assert '\r' not in run.stdout and '\x1b' not in run.stdout and '█' not in run.stdout   # plain lines in a pipe
    assert 'broken.png: not an image' in run.stderr and 'Traceback' not in run.stderr


def test_a_terminal_gets_a_bar_also_without_network_home_or_display(shared):
    "In a pseudo-terminal, where fastai's and fastprogress' bars draw themselves; what is missing changes nothing but the messages"
    pty = pytest.importorskip('pty', reason='pseudo-terminals are for Unix')
    root, _ = shared
    nothing = dict(HOME='/dev/null/home', XDG_CACHE_HOME='/dev/null/cache', FASTBIT_CACHE='/dev/null/fastbit', MPLCONFIGDIR='/dev/null/mpl', DISPLAY=':987',
                   MPLBACKEND='', https_proxy='http://127.0.0.1:9', http_proxy='http://127.0.0.1:9', HF_HUB_OFFLINE='0')
    parent, child = pty.openpty()
    with subprocess.Popen([sys.executable, '-m', 'fastbit', 'baseline', str(root/'data'), *map(str, QUICK), '--out', str(root/'tty'), '--workers', '2'], cwd=root,
                          stdin=child, stdout=child, stderr=child, env={**os.environ, **nothing, 'COLUMNS': '120', 'PYTHONHASHSEED': '3'}) as run:
        os.close(child)
        text = b''
        try:
            while part := os.read(parent, 4096): text += part
        except OSError: pass   # how Linux says that the other side has closed
        assert run.wait(timeout=300) == 0, text.decode()
    os.close(parent)
    text = text.decode()
    assert 'checking images' in text and '100.00%' in text and '\r' in text and 'accuracy' in text
    assert 'Traceback' not in text and 'torch.jit' not in text, text   # in a new Python
    assert (root/'tty'/'predictions.csv').read_text() == (root/'run'/'predictions.csv').read_text()
    assert sorted(p.name for p in (root/'tty').iterdir()) == FILES


def test_another_seed_other_numbers(shared):
    "The same seed gives the same: with workers and another order of sets in the tests around this one"
    root, _ = shared
    run = run_fastbit('baseline', root/'data', *QUICK, '--out', root/'again', '--seed', 1, '--workers', 0, cwd=root)
    assert run.returncode == 0, run.stderr
    assert (root/'again'/'predictions.csv').read_text() != (root/'run'/'predictions.csv').read_text()


def test_digits_where_the_cache_is_read_only():
    from fastbit.data import digits_table
    import unittest.mock as mock
    with mock.patch.dict(os.environ, FASTBIT_CACHE='/dev/null/fastbit'): table = digits_table()
    assert len(table) == 1797 and all(os.path.exists(p) for p in table.path[:3])


@pytest.mark.parametrize('args, message', [
    (('baseline', 'nowhere'), "no folder or file 'nowhere'"),
    (('baseline', '.', '--arch', 'resnet5O'), 'not the name of a timm model'),
    (('baseline', '.', '--arch', 'BiT-L-R50x1'), 'never published'),
    (('baseline', '.', '--arch', 'BiT-M-R50x1'), 'hub does not answer'),
    (('baseline', '.', '--weights', 'imagenet'), "'random'"),
    (('baseline', '.', '--weights', 'mine.pth'), 'no such file'),
    (('baseline', '.', '--recipe', 'magic'), 'Choose from auto'),
    (('baseline', '.', '--epochs', '0'), '--epochs 0'), (('baseline', '.', '--epochs', 'x'), 'invalid int'),
    (('baseline', '.', '--bs', '0'), '--batch-size 0'), (('baseline', '.', '--size', '8'), '32 or more'), (('baseline', '.', '--lr', '-1'), '--lr -1'),
    (('baseline', '.', '--valid-pct', '120'), '--valid-pct must be between 0 and 1 (did you mean 0.2?)'), (('baseline', '.', '--device', 'tpu9'), 'device'), (('baseline', '.', '--device', 'cuda:77'), 'device'),
    (('baseline', '.', '--workers', '-1'), 'workers'), (('baseline', '.', '--out', '/dev/null/out'), 'cannot be written to'),
    (('baseline', '.', '--recipe', 'onecycle', '--steps', '20'), '--steps applies to the auto and hyperrule recipes only, not to onecycle.'), (('baseline', '.', '--recipe', 'hyperrule', '--epochs', '3'), 'Set its length with --steps.'),
    (('baseline', '.', '--recipe', 'hyperrule', '--steps', '0'), '--steps 0'), (('baseline', '.', '--recipe', 'hyperrule', '--batch-size', '0'), '--batch-size 0'),
    (('baseline', '.', '--recipe', 'hyperrule', '--size', '0'), '32 or more'), (('baseline', '.', '--recipe', 'hyperrule', '--scale', 'x'), 'linear, preset or none'),
    (('baseline', '.', '--recipe', 'hyperrule', '--scale', 'preset', '--batch-size', '64'), 'give neither'), (('baseline', '.', '--recipe', 'hyperrule', '--eval-every', '0'), '--eval-every 0'),
    (('baseline', '.', '--keep-best', 'f1'), 'macro_f1'), (('baseline', '.', '--patience', '0'), '--patience 0'), (('baseline', '.', '--k-per-class', '0'), '--images-per-class 0'),
    (('recipe', 'nowhere'), "no folder or file 'nowhere'"), (('recipe', '.', '--plot', 'x.bmp'), '.png, .svg or .pdf'), (('recipe', '.', '--base-lr', '0'), '--base-lr 0'),
    (('baseline', '.', '--out', '../run'), 'already contains a finished run'), (('baseline', '.', '--frobnicate'), 'unknown option --frobnicate'), (('baseline', '.', '--sise', '3'), 'did you mean --size?'),
    (('basline',), 'unknown command basline, did you mean baseline?'), (('baseline', 'flowrs'), 'Did you mean flowers?'),
    (('baseline', '.', '--lr', '1', '--recipe', 'hyperrule', '--base-lr', '1'), 'one follows from the other'), (('bodies', '*nope*'), 'No body matches')])
def test_errors_are_one_line_and_exit_2(shared, args, message, capsys, monkeypatch):
    from fastbit.cli.command import main
    root, _ = shared
    monkeypatch.chdir(root/'data')
    extra = ['--out', str(root/'never')] if args[:1] == ('baseline',) and '--out' not in args else []
    try: status = main([*args, *extra])
    except SystemExit as e: status = e.code
    err = [o for o in capsys.readouterr().err.splitlines() if ': note: ' not in o and not o.startswith('  ')]
    assert status == 2 and len(err) == 1 and message in err[0] and err[0].startswith('fastbit'), err
    assert not (root/'never').exists()


def test_unexpected_errors_say_so(capsys, monkeypatch):
    import fastbit.baseline.run as baseline
    import fastbit.cli.command as cli
    def broken(*args, **kwargs): raise ZeroDivisionError('oh')
    monkeypatch.setattr(baseline, 'baseline', broken)
    assert cli.main(['baseline']) == 2
    assert capsys.readouterr().err == 'fastbit: error: unexpected ZeroDivisionError: oh (--traceback shows where)\n'
    with pytest.raises(ZeroDivisionError): cli.main(['baseline', '--debug'])
    def stopped(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(baseline, 'baseline', stopped)
    assert cli.main(['baseline']) == 130


def test_public_sets_offline_say_what_to_do(monkeypatch, capsys, tmp_path):
    import urllib.error
    from fastai.data import external
    from fastbit.cli.command import main
    monkeypatch.chdir(tmp_path)
    def offline(url, **kwargs): raise urllib.error.URLError('no network')
    monkeypatch.setattr(external, 'untar_data', offline)
    assert main(['baseline', 'flowers']) == 2
    err = capsys.readouterr().err
    assert 'oxford-102-flowers.tgz' in err and 'give its folder instead' in err and err.count('\n') == 1


def test_a_public_set_by_name(monkeypatch, shared, capsys):
    "Fetching is fastai's; here it has been fetched before"
    from fastai.data import external
    from fastbit.baseline import baseline
    root, _ = shared
    monkeypatch.setattr(external, 'untar_data', lambda url, **kwargs: root/'data')
    with pytest.warns(UserWarning, match='skipped'): res = baseline('imagenette', arch='test_efficientnet', weights='random', size=32, recipe='head', epochs=1, verbose=False, num_workers=0)
    assert res.plan.data == 'imagenette' and res.evaluation.n == 7
    assert capsys.readouterr().out == ''   # verbose=False


def test_version_and_bodies():
    from fastbit import __version__
    run = start_fastbit('--version', cwd='.')
    assert (run.returncode, run.stdout) == (0, f'fastbit {__version__}\n')
    run = run_fastbit('bodies', '*lite*', cwd='.')
    row = next(o for o in run.stdout.splitlines() if o.strip().startswith('tf_efficientnet_lite0'))
    assert 'installed' in row and 'apache-2.0' in row


def test_the_wilson_interval_is_statsmodels_and_textbooks():
    from fastbit.metrics.intervals import wilson_interval
    assert wilson_interval(18, 20) == pytest.approx((.69897, .97213), abs=1e-5)
    assert wilson_interval(0, 10) == pytest.approx((0, .27753), abs=1e-5) and wilson_interval(10, 10)[1] == 1


def test_top5_and_macro_f1():
    import torch
    from sklearn.metrics import f1_score, top_k_accuracy_score
    from fastbit.metrics import evaluate_probs
    probs = torch.rand(200, 12, generator=torch.manual_seed(0)).softmax(1); targs = torch.randint(0, 12, (200,), generator=torch.manual_seed(1))
    ev = evaluate_probs(probs, targs)
    assert ev.top5 == pytest.approx(top_k_accuracy_score(targs, probs, k=5)) and ev.macro_f1 == pytest.approx(f1_score(targs, probs.argmax(1), average='macro'))
    some = targs.clamp(max=8)   # a class without images has no F1; sklearn's default counts its false alarms as a zero
    assert evaluate_probs(probs, some).macro_f1 == pytest.approx(f1_score(some, probs.argmax(1), labels=range(9), average='macro'))
    assert evaluate_probs(probs[:, :10].softmax(1), targs % 10).top5 is None
    with pytest.raises(ValueError): evaluate_probs(probs, targs[:5])


def test_rule_reads_headers_alone_and_says_what_it_leaves_out(shared, tmp_path):
    root, _ = shared
    run = run_fastbit('rule', root/'data', '--batch-size', 64, '--plot', tmp_path/'rate.png', cwd=root)
    assert run.returncode == 0 and '36 images, 3 classes; 29 to train, 7 held out' in run.stdout, run.stderr
    assert 'training images of 20 x 24 pixels (small' in run.stdout and '0.003 · 64/512' in run.stdout and 'broken.png' in run.stderr
    with Image.open(tmp_path/'rate.png') as img: assert min(img.size) > 300
    assert run.stdout.splitlines()[-1].endswith('data --recipe hyperrule --arch BiT-M-R50x1 --batch-size 64')   # what to type next asks for the same


def test_few_images_a_class_and_the_best_kept(shared, tmp_path):
    root, _ = shared
    run = run_fastbit('baseline', root/'data', *QUICK, '--out', tmp_path/'run', '--workers', 0, '--k-per-class', 2, '--keep-best', 'accuracy', '--patience', 1, cwd=root)
    assert run.returncode == 0, run.stderr
    res = json.loads((tmp_path/'run'/'results.json').read_text())
    assert res['plan']['n_train'] == 6 and '6 train' in run.stdout and '(same images: slightly optimistic)' in run.stdout
    assert res['chosen'].endswith('by accuracy') and res['evaluation']['accuracy'] == pytest.approx(pd.read_csv(tmp_path/'run'/'history.csv').accuracy.max())


@pytest.mark.filterwarnings('ignore::fastbit.core.text.DataWarning')
def test_the_words_of_before_still_work(shared, capsys, monkeypatch):
    from fastbit.cli.command import main, read_arguments
    root, _ = shared
    monkeypatch.chdir(root)
    assert main(['recipe', 'data', '--scale', 'none']) == 0
    before = capsys.readouterr().out
    assert main(['rule', 'data', '--batch-scaling', 'none']) == 0 and capsys.readouterr().out == before
    read = lambda *words: {k: v for k, v in vars(read_arguments(list(words))).items() if k not in ('began', 'argv')}
    for old, new in (('compare data --k-per-class 5', 'leaderboard data --images-per-class 5'), ('onnx run net.onnx', 'export run net.onnx'),
                     ('baseline data --bs 8 --views 2 --no-draft --debug', 'baseline data --batch-size 8 --head-augment 2 --full-decode --traceback'),
                     ('baseline data --recipe hyperrule --bs 8 --base-lr 0.01', 'baseline data --recipe hyperrule --micro-batch 8 --base-lr 0.01'),
                     ('baseline data --time-limit 5m --valid-pct 20%', 'baseline data --budget 5m --valid-pct 0.2'), ('baseline --valid-pct 20', 'baseline --valid-pct 0.2')):
        assert read(*old.split()) == read(*new.split()), old


def test_alone_it_prints_its_help(capsys):
    from fastbit.cli.command import main
    with pytest.raises(SystemExit) as e: main([])
    assert e.value.code == 0 and 'COMMAND' in capsys.readouterr().out


def test_a_finished_run_is_replaced_when_asked_for(shared, tmp_path):
    root, _ = shared
    out = tmp_path/'out'
    head = ('--recipe', 'head', '--arch', 'test_efficientnet', '--weights', 'random', '--size', 32, '--epochs', 2, '--out', out)
    assert run_fastbit('baseline', root/'data', *head, cwd=tmp_path).returncode == 0
    (out/'mine.txt').write_text('notes')
    first = (out/'predictions.csv').read_text()
    again = run_fastbit('baseline', root/'data', *head, '--seed', 5, '--overwrite', '--quiet', cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == '', again.stderr
    assert (out/'mine.txt').exists() and (out/'predictions.csv').read_text() != first
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, 'mine.txt'])


def test_evaluate_skips_what_was_trained_on(shared, tmp_path):
    root, _ = shared
    got = run_fastbit('evaluate', root/'run', root/'data', cwd=tmp_path)
    assert got.returncode == 0 and '7 images' in got.stdout and '29 of 37 images skipped' in got.stdout, got.stdout + got.stderr
    every = run_fastbit('evaluate', root/'run', root/'data', '--all', cwd=tmp_path)
    assert '36 images' in every.stdout and 'of these 36 images were in the training set' in every.stderr, every.stdout + every.stderr


def test_a_mistyped_folder_is_answered_at_once(tmp_path):
    import time
    (tmp_path/'photos').mkdir()
    start = time.monotonic()
    run = start_fastbit('baseline', 'photso', cwd=tmp_path)
    assert time.monotonic() - start < 1 and run.returncode == 2 and 'Did you mean photos?' in run.stderr
