"Callbacks beside one another: no names that the learner has, and loggers that are put back, whoever else logs"
import csv

import pytest
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.learner import Recorder
from fastcore.xtras import ContextManagers

from conftest import TINY
from fastbit.baseline import TimeLimit
from fastbit.training import JsonLog, KeepBest, PlainLog, transfer_learner
from fastbit.training.callbacks import RarelyProgress
from fastbit.data import image_dataloaders
from fastbit.training.tta import _ViewsModel
from fastbit.bodies import FoldedModel
from fastbit.core.text import DataWarning


@pytest.fixture
def dls(folder): return image_dataloaders(folder, 'test_efficientnet', size=32, bs=16, num_workers=0, check=False, cache=False, device='cpu')


def shadowed(learn, cb) -> set:
    "Attributes of a callback that would hide the learner's, or those of a model that stands in for its own"
    models = (learn.model, FoldedModel(learn.model), _ViewsModel(learn.model, ('identity',), learn.dls.preprocess))
    hides = lambda k: k in vars(learn) or hasattr(type(learn), k) or any(hasattr(m, k) for m in models)
    fastais = vars(Recorder()) if isinstance(cb, Recorder) else ()
    return {k for k in vars(cb) if k != 'learn' and not k.startswith('__') and k not in fastais and hides(k)}


def test_no_callback_hides_an_attribute_of_the_learner_or_its_model(dls, tmp_path):
    "fastai warns for each, in red in a notebook, when it is set in a fit"
    seen = {}
    class Look(Callback):
        order = 100
        def after_epoch(self): seen.update({type(cb).__name__: shadowed(self.learn, cb) for cb in self.learn.cbs if type(cb).__module__.startswith('fastbit')})
    learn = transfer_learner(dls, **TINY, cbs=Look())
    learn.remove_cb(PlainLog).add_cbs([RarelyProgress(), JsonLog(tmp_path/'log.jsonl'), KeepBest()])
    with learn.no_bar(): learn.fit_one_cycle(1, 1e-3, checkpoint=tmp_path/'run.safetensors', cbs=[TimeLimit(600.), PlainLog()])
    with learn.no_logging(): learn.fit_hyperrule(batch_size=16, n_steps=2, eval_every=2, show=False, zero_head=False, checkpoint=tmp_path/'rule.safetensors')
    assert {'History', 'KeepBest', 'JsonLog', 'PlainLog', 'RarelyProgress', 'EpochCheckpoint', 'Checkpoint', 'TimeLimit', 'RuleSteps', 'FiniteLoss', 'InterruptCallback'} <= set(seen)
    assert {k: v for k, v in seen.items() if v} == {}


def rows(file): return list(csv.reader(file.read_text().splitlines()))


@pytest.mark.parametrize('bar', [PlainLog, RarelyProgress])
@pytest.mark.parametrize('where', ['made with', 'added', 'of the fit', 'before ours'])
@pytest.mark.parametrize('silent', [False, True])
def test_a_csv_logger_writes_and_every_logger_is_put_back(dls, tmp_path, capsys, bar, where, silent):
    "In whichever order they come; with `no_logging` nothing is printed"
    logger = CSVLogger('log.csv')
    learn = transfer_learner(dls, **TINY, cbs=logger if where == 'made with' else None, path=tmp_path)
    if where != 'made with': learn.remove_cb(PlainLog)
    if where == 'before ours': learn.add_cb(logger)
    if where != 'made with': learn.add_cb(bar())
    if where == 'added': learn.add_cb(logger)
    quiet = [learn.no_logging(), *([learn.no_bar()] if bar is RarelyProgress else [])]
    capsys.readouterr()
    with ContextManagers(quiet if silent else []):
        learn.fit(2, 1e-3, cbs=[logger, KeepBest()] if where == 'of the fit' else KeepBest())
    assert learn.logger is print
    out = capsys.readouterr().out
    assert not out if silent else 'weights restored' in out
    assert [r[0] for r in rows(tmp_path/'log.csv')] == ['epoch', '0', '1']
    if silent or bar is RarelyProgress: return
    assert sum(line.split()[:1] in (['1'], ['2']) for line in out.splitlines()) == 2   # once each, counted from 1


def test_loggers_are_put_back_after_an_error(dls):
    class Stop(Callback):
        order = 61   # after other loggers
        def before_fit(self): self.learn.logger = self.learn.to_detach
        def after_batch(self): raise ValueError('stop')
    learn = transfer_learner(dls, **TINY)
    with pytest.raises(ValueError, match='stop'): learn.fit(1, 1e-3, cbs=Stop())
    assert learn.logger is print


def test_other_bars_and_callbacks(dls, tmp_path):
    "fastai's own bar keeps its CSV; the rate finder leaves the file alone; `no_bar` gives back the bar that was there"
    learn = transfer_learner(dls, **TINY, path=tmp_path, cbs=CSVLogger('log.csv'))
    learn.fit(1, 1e-3)
    before = rows(tmp_path/'log.csv')
    learn.lr_find(num_it=20, show_plot=False)
    assert rows(tmp_path/'log.csv') == before and len(before) == 2 and learn.logger is print
    learn.remove_cb(PlainLog).add_cb(bar := RarelyProgress())
    with learn.no_bar(): assert not hasattr(learn, 'progress')
    assert learn.progress is bar and not [cb for cb in learn.cbs if type(cb) is ProgressCallback]


def test_the_graph_needs_a_bar(dls):
    learn = transfer_learner(dls, **TINY)
    for cb in (ShowGraphCallback(), ShowGraphCallback):
        with pytest.warns(DataWarning, match='ShowGraphCallback .*plot_loss'): learn.fit(1, 1e-3, cbs=cb)
    learn.add_cb(cb := ShowGraphCallback())
    with pytest.warns(DataWarning, match='is ignored'): learn.fit(1, 1e-3)
    assert cb in learn.cbs


def test_a_schedule_is_drawn_when_there_is_one(dls):
    learn = transfer_learner(dls, **TINY)
    learn.fit(1, 1e-3)
    with pytest.raises(ValueError, match='no schedule'): learn.recorder.plot_sched()
    learn.lr_find(num_it=20, show_plot=False)
    with pytest.raises(ValueError, match='no schedule'): learn.recorder.plot_sched()
    learn.fit_one_cycle(1, 1e-3)
    learn.recorder.plot_sched()
