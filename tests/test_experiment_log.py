"Logs of experiments: asked for, found, and without effect on the run"
import json, sys

import pytest

from fastbit.baseline import baseline
from fastbit.cli.command import main
from conftest import TINY, write_folder

QUICK = dict(TINY, recipe='head', size=32, epochs=2, batch_size=8, device='cpu', num_workers=0, flip=False, verbose=False)
STAND_IN = '''
calls = []
def init(**options): calls.append(('init', options))
def log(values, step): calls.append(('log', dict(values, step=step)))
def finish(): calls.append(('finish', {}))
'''


@pytest.fixture(scope='module')
def data(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('log')/'photos', dict(blue=12, green=12, red=12))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    "wandb and trackio as modules of two lines, which write down their calls"
    (tmp_path/'modules').mkdir()
    for name in ('wandb', 'trackio'):
        (tmp_path/'modules'/f'{name}.py').write_text(STAND_IN)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path/'modules')
    yield lambda name: sys.modules[name].calls
    for name in ('wandb', 'trackio'): sys.modules.pop(name, None)


def test_steps_epochs_and_figures_are_logged_and_change_nothing(data, tmp_path, stand_in):
    plain = baseline(data, **QUICK, out=tmp_path/'plain')
    assert 'trackio' not in sys.modules
    res = baseline(data, **QUICK, out=tmp_path/'logged', log='trackio')
    calls = stand_in('trackio')
    assert [kind for kind, _ in calls].count('init') == 1 and calls[-1][0] == 'finish'
    options = calls[0][1]
    assert options['project'] == 'fastbit' and options['name'] == 'photos' and options['config']['epochs'] == 2
    logged = [values for kind, values in calls if kind == 'log']
    losses = [o['train/loss'] for o in logged if 'train/loss' in o]
    assert losses == pytest.approx(res.steps.loss.tolist()) and [o['step'] for o in logged] == sorted(o['step'] for o in logged)
    assert [o['valid/accuracy'] for o in logged if 'valid/accuracy' in o] == pytest.approx(res.epochs.accuracy.tolist())
    assert len(losses) == 8   # not those of the rate finder
    final = next(o for o in logged if 'final/accuracy' in o)
    assert (final['final/accuracy'], final['final/accuracy_low'], final['final/accuracy_high']) == pytest.approx((res.evaluation.accuracy, res.evaluation.low, res.evaluation.high))
    for name in ('predictions.csv', 'model/model.safetensors'): assert (tmp_path/'plain'/name).read_bytes() == (tmp_path/'logged'/name).read_bytes()
    assert plain.steps.equals(res.steps)


@pytest.mark.filterwarnings('ignore')   # of tensorboard
def test_tensorboard_reads_its_files(data, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    res = baseline(data, **QUICK | dict(epochs=3), out=tmp_path/'out', log='tensorboard')
    folder, = (tmp_path/'out'/'tensorboard').iterdir()
    found = EventAccumulator(str(folder)).Reload()
    assert [o.value for o in found.Scalars('valid/accuracy')] == pytest.approx(res.epochs.accuracy.tolist())
    assert found.Scalars('final/accuracy')[0].value == pytest.approx(res.evaluation.accuracy)
    assert 'options/text_summary' in found.Tags()['tensors']


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')   # of wandb
def test_wandb_itself_records_a_run(data, tmp_path, monkeypatch):
    "Offline: the file that `wandb sync` uploads has the steps, the epochs and the figures"
    pytest.importorskip('wandb')
    for k, v in dict(WANDB_MODE='offline', WANDB_SILENT='true').items(): monkeypatch.setenv(k, v)
    baseline(data, **QUICK, out=tmp_path/'out', log='wandb')
    file, = (tmp_path/'out').rglob('*.wandb')
    recorded = file.read_bytes()
    for key in (b'train/loss', b'valid/accuracy', b'final/accuracy', b'final/accuracy_low'): assert key in recorded, key


def test_errors_come_before_work(data, tmp_path, monkeypatch, capsys):
    import importlib.util
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *args: None if name == 'wandb' else real(name, *args))
    with pytest.raises(ImportError, match='pip install wandb'): baseline(data, **QUICK, out=tmp_path/'out', log='wandb')
    assert main(['baseline', str(data), '--log', 'wandb']) == 2
    assert capsys.readouterr().err == 'fastbit: error: --log wandb needs wandb. Run: pip install wandb\n'
    assert main(['baseline', str(data), '--log', 'mlflow']) == 2 and 'choose from tensorboard, wandb, trackio' in capsys.readouterr().err
    assert not (tmp_path/'out').exists()


def test_another_log_is_the_same_run(data, tmp_path, stand_in):
    "A finished fold, and a finished run, are recognized"
    baseline(data, **QUICK | dict(epochs=1), out=tmp_path/'out', log='wandb')
    kinds = [kind for kind, _ in stand_in('wandb')]
    assert kinds[0] == 'init' and kinds[-1] == 'finish' and stand_in('wandb')[0][1]['dir'] == str(tmp_path/'out')
    assert json.loads((tmp_path/'out'/'results.json').read_text())['settings']['log'] == 'wandb'
    with pytest.raises(ValueError, match='finished run with these settings'): baseline(data, **QUICK | dict(epochs=1), out=tmp_path/'out')
