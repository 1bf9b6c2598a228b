"What people are used to: a plan before the work, a log to follow, fastai's trackers, completion, rich displays"
import json, subprocess, sys

import numpy as np, pandas as pd, pytest
from fastai.metrics import accuracy

from fastbit.baseline import baseline, Plan
from fastbit.training import JsonLog, transfer_learner
from fastbit.data import image_dataloaders
from fastbit.studies import few_shot_curve
from fastbit.core.text import show
from conftest import TINY, look_at, run_fastbit

small = dict(TINY, size=32, num_workers=0, recipe='onecycle', epochs=2)


def learner(folder, **kwargs): return transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0), **TINY, metrics=accuracy, **kwargs)


def test_a_dry_run_is_the_plan_and_nothing_else(folder, tmp_path, capsys):
    plan = baseline(folder, out=tmp_path/'run', dry_run=True, **small)
    assert isinstance(plan, Plan) and 'phase 2' in capsys.readouterr().out and not (tmp_path/'run').exists()
    run = run_fastbit('baseline', folder, '--arch', 'test_efficientnet', '--weights', 'random', '--size', 32, '--dry-run', cwd=tmp_path)
    assert run.returncode == 0 and 'from a measured batch' in run.stdout and 'accuracy' not in run.stdout and not (tmp_path/'fastbit-runs').exists()


def test_a_line_an_epoch_is_on_the_disk_while_it_trains(folder, tmp_path):
    from fastai.callback.core import Callback
    seen = []
    class Look(Callback):
        order = 90
        def after_epoch(self):
            if (tmp_path/'log.jsonl').exists(): seen.append(len((tmp_path/'log.jsonl').read_text().splitlines()))
    learn = learner(folder)
    learn.add_cbs([JsonLog(tmp_path/'log.jsonl'), Look()])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2); learn.lr_find(show_plot=False, num_it=20); learn.unfreeze(); learn.fit_one_cycle(1); learn.get_preds()
    rows = [json.loads(line) for line in (tmp_path/'log.jsonl').read_text().splitlines()]
    assert [(r['phase'], r['epoch']) for r in rows] == [('head', 0), ('head', 1), ('all layers', 0)] and seen[:2] == [1, 2] and 3 in seen
    assert rows[1]['valid_loss'] == learn.history.epochs.valid_loss[1] and set(rows[0]) >= {'train_loss', 'accuracy', 'step', 'lr', 'seconds'}


def test_the_log_of_a_run_is_its_history(folder, tmp_path):
    baseline(folder, out=tmp_path/'run', verbose=False, **small)
    rows, history = [json.loads(line) for line in (tmp_path/'run'/'log.jsonl').read_text().splitlines()], pd.read_csv(tmp_path/'run'/'history.csv')
    assert np.allclose([r['valid_loss'] for r in rows], history.valid_loss) and len(rows) == len(history) == 2


def test_a_loss_that_is_not_finite_is_still_json(folder, tmp_path):
    learn = learner(folder)
    learn.add_cb(JsonLog(tmp_path/'log.jsonl'))
    learn.history.rows = [dict(epoch=0, valid_loss=float('nan'))]
    learn.json_log.after_epoch()
    assert json.loads((tmp_path/'log.jsonl').read_text(), parse_constant=lambda v: pytest.fail(v)) == dict(epoch=0, valid_loss=None)


@pytest.mark.filterwarnings('ignore')   # of tensorboard and torch.jit
def test_fastais_tensorboard_callback(folder, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    learn = learner(folder)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, cbs=TensorBoardCallback(tmp_path/'steps', trace_model=False))
        learn.fit_head(2, cbs=TensorBoardCallback(tmp_path/'head', trace_model=False, log_preds=False))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for name, n in (('steps', 4), ('head', 2)):
        log = EventAccumulator(str(tmp_path/name)).Reload()
        assert len(log.Scalars('train_loss')) >= n and log.Scalars('accuracy')


def test_fastcores_init_args_still_needs_the_work_around():
    "When this fails, `TransferLearner.gather_args` can go"
    from fastcore.basics import init_args
    with pytest.raises(TypeError): init_args(3)


@pytest.mark.filterwarnings('ignore')   # of wandb
def test_fastais_wandb_callback(folder, tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    for k, v in dict(WANDB_MODE='offline', WANDB_SILENT='true', WANDB_DIR=str(tmp_path)).items(): monkeypatch.setenv(k, v)
    from fastai.callback.wandb import WandbCallback
    run = wandb.init(project='test', dir=str(tmp_path))
    try:
        learn = learner(folder)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, cbs=WandbCallback(log=None, log_preds=False))
        assert run.config['arch'].startswith('test_efficientnet') and run.config['images'] == 32
        assert run.summary['valid_loss'] == pytest.approx(learn.history.epochs.valid_loss[0]) and 'accuracy' in run.summary.keys()
    finally: run.finish()


def test_the_shell_completes_options_and_names(tmp_path):
    script = run_fastbit('--print-completion', 'bash', cwd=tmp_path)
    assert script.returncode == 0, script.stderr
    (tmp_path/'complete.sh').write_text(script.stdout)
    def complete(*words):
        code = f'source complete.sh; COMP_WORDS=(fastbit {" ".join(words)}); COMP_CWORD={len(words)}; _shtab_fastbit "" "{words[-1]}" 2>/dev/null; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(['bash', '-c', code], cwd=tmp_path, capture_output=True, text=True).stdout.split()
    assert {'baseline', 'check', 'leaderboard', 'bodies'} <= set(complete('""')) or 'baseline' in complete('bas')
    assert '--test-pct' in complete('baseline', '--te') and 'hyperrule' in complete('baseline', '--recipe', 'hy')
    assert 'tf_efficientnet_lite0.in1k' in complete('baseline', '--arch', 'tf_efficientnet_lite0')
    assert run_fastbit('--print-completion', 'fish', cwd=tmp_path).returncode == 2


def test_results_are_tables_in_a_notebook(folder, capsys):
    res = baseline(folder, verbose=False, **small)
    for obj in (res, res.plan):
        html = obj._repr_html_()
        assert html.startswith('<table') and 'accuracy' in html or 'phase 2' in html
        show(obj)
        assert capsys.readouterr().out.strip() == str(obj).strip()   # and text elsewhere
    code = 'import fastcore.imports; fastcore.imports.IN_NOTEBOOK = True; import fastbit.core.text as p, IPython.display as d; d.display = lambda o: print("rich", o); p.show(3)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'rich 3'


def test_the_few_shot_page_in_a_browser(folder, tmp_path):
    few_shot_curve(folder, ks=(1, 3), repeats=2, **TINY, size=32, num_workers=0, batch_size=8, n_steps=4, scale=None, verbose=False, out=tmp_path/'few.csv')
    assert len(pd.read_csv(tmp_path/'few.csv')) == 4
    for width in (1200, 390):
        seen = look_at(tmp_path/'few.html', width)
        assert (seen['errors'], seen['broken'], seen['requests'], seen['pictures']) == ([], [], [], 1) and seen['too_wide'] <= 0, width
        assert 'median accuracy' in seen['text'].lower()
