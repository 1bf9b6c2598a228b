"What is done on a GPU, with devices that are made up: nothing here needs one, and a CPU's numbers stay what they are"
import json, runpy, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch
from fastai.learner import Learner
from fastai.metrics import F1Score, accuracy

from fastbit.bodies.fold import FoldedModel
from fastbit.core.device import Pieces
from fastbit.data import image_dataloaders
from fastbit.data.features import FeatureDL, Features, frozen_features
from fastbit.training import compiled, precision, read_checkpoint, transfer_learner
from fastbit.training.precision import DevicePrecision, KeptOutputs
from conftest import TINY, write_folder

BENCHMARKS = Path(__file__).parents[1]/'benchmarks'


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    "Eleven images to train in batches of four: the last batch of an epoch has three"
    folder = write_folder(tmp_path_factory.mktemp('gpu')/'data', dict(blue=7, red=6))
    return image_dataloaders(folder, 'test_efficientnet', size=32, bs=4, num_workers=0, device='cpu', valid_pct=.2)


def learner(dls, **kwargs):
    torch.manual_seed(0)
    fresh = dls.__class__(*[dl.new() for dl in dls.loaders], path=dls.path, device=dls.device)
    fresh.image_set = dls.image_set
    learn = transfer_learner(fresh, **TINY, fused=False, **kwargs)   # as on a GPU
    learn.unfreeze()
    return learn


def fit(learn, *cbs, **how):
    with learn.no_bar(): learn.fit_one_cycle(4, 1e-3, cbs=list(cbs), **how)
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# memory

def test_images_that_do_not_fit_at_once_have_the_same_outputs(dls, monkeypatch, capsys):
    "Features, evaluation and TTA on a device with memory for two images"
    learn = learner(dls)
    fit(learn)
    def outputs():
        features = frozen_features(learn.model, dls.train.items, dls.preprocess, bs=8, cache=False)
        return features.rows, learn.get_preds()[0].numpy(), learn.tta(show=False)[0].numpy(), np.array(learn.evaluate(show=False).loss)
    whole, run, seen = outputs(), FoldedModel._run, []
    def small(self, net, x):
        seen.append(len(x))
        if len(x) > 2: raise torch.OutOfMemoryError('CUDA out of memory')
        return run(self, net, x)
    monkeypatch.setattr(FoldedModel, '_run', small)
    for a, b in zip(whole, outputs()): assert abs(a - b).max() < 1e-5
    assert {8, 4, 2} <= set(seen) and 'out of memory with 8 images at once: continuing with 4' in capsys.readouterr().out
    assert sum(n > 2 for n in seen) < 10   # it is remembered


def test_whole_batches_are_one_call():
    "No copy, no other order of sums: on a CPU nothing changes"
    x, seen = torch.rand(5, 3), []
    assert Pieces().run(lambda b: seen.append(b) or b, x) is x and seen[0] is x


# transfers

def test_outputs_stay_on_the_device_until_all_are_there(dls, monkeypatch):
    learn, copies, own = learner(dls), [], Learner.to_detach
    def seen(self, b, cpu=True, gather=True):
        copies.append(cpu)
        return own(self, b, cpu, gather)
    plain = learn.get_preds()[0]
    monkeypatch.setattr(Learner, 'to_detach', seen)
    found = learn.tta(show=False)
    assert not any(copies) and copies and not learn.keeps_outputs
    assert torch.equal(found.plain, plain)
    monkeypatch.setattr('fastbit.training.tta.IN_MEMORY', 0)   # too many: a batch at a time, as fastai does it
    copies.clear()
    assert torch.equal(learn.tta(show=False)[0], found[0]) and any(copies)


def test_losses_of_steps_are_fetched_once_an_epoch(dls):
    learn = learner(dls)
    fit(learn)
    kept = [loss for _, _, loss, *_ in learn.history.step_rows]
    assert learn.history.fetched == len(kept) == 12 and len({loss.untyped_storage().data_ptr() for loss in kept}) == 4
    assert learn.history.steps.loss.notna().all()


@pytest.mark.parametrize('limit', [2**30, 0])   # bytes that may wait: all, or none
def test_outputs_for_a_metric_are_fetched_together(dls, monkeypatch, limit):
    "On a device that is made up: every tensor that is not fetched yet is said to be there"
    def fitted():
        learn = learner(dls, metrics=[accuracy, F1Score()])
        fit(learn)
        return learn.recorder.values
    plain, fetched, moved = fitted(), {}, []
    def cpu(self):
        moved.append(self)
        return fetched.setdefault(id(self), self)   # kept, so that no other tensor gets its number
    monkeypatch.setattr(precision, '_is_away', lambda t: id(t) not in fetched)
    monkeypatch.setattr(precision, 'IN_MEMORY', limit)
    fetch = KeptOutputs.fetch
    def counted(self):
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(torch.Tensor, 'cpu', cpu)
            fetch(self)
    monkeypatch.setattr(KeptOutputs, 'fetch', counted)
    seen, detach = [], Learner.to_detach
    monkeypatch.setattr(Learner, 'to_detach', lambda self, b, cpu=True, gather=True: seen.append(cpu) or detach(self, b, cpu, gather))
    assert fitted() == plain and not any(seen)
    transfers = 1 if limit else len(dls.valid)
    assert len(moved) == 4*2*transfers   # epochs; outputs and targets


def test_numbers_of_batches_of_features_are_sent_once_a_pass(monkeypatch):
    "Those of the images and those of their rows; the batches are what they are when rows stay on the disk"
    sent, own = [], FeatureDL._numbers
    monkeypatch.setattr(FeatureDL, '_numbers', lambda self, parts: sent.append(len(parts)) or own(self, parts))
    features = Features(np.random.rand(22, 3).astype(np.float32), np.arange(22).reshape(11, 2), 22, 0., None, '')
    batches = lambda dl: [(x.tolist(), y.tolist()) for _ in range(2) for x, y in dl]
    made = lambda: FeatureDL(features, torch.arange(11), 4, shuffle=True, repeat=2)
    there = batches(made())
    assert sent == [6]*4
    monkeypatch.setattr('fastbit.data.features.IN_MEMORY', 0)
    assert batches(made()) == there and len(sent) == 4


def test_predictions_on_a_gpu_are_those_of_the_exported_model(monkeypatch):
    "bf16 is for training; on a CPU, where somebody asks for it, it stays as it was"
    asked = []
    monkeypatch.setattr(torch, 'autocast', lambda device, dtype, enabled: asked.append((device, enabled)))
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda *args, **kwargs: None)
    for device in ('cuda', 'cpu'):
        for more in ({}, dict(gather_preds=1)):
            cb = DevicePrecision('bf16')
            cb.learn = SimpleNamespace(model=SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(device))])), **more)
            cb.before_fit()
    assert asked == [('cuda', True), ('cuda', False), ('cpu', True), ('cpu', True)]


# compiling

class Compiler:
    "`torch.compile`, which counts what it runs; `error`: and fails when it is called"
    def __init__(self, error=None): self.shapes, self.error, self.of = [], error, []
    def __call__(self, net, dynamic, backend):
        self.of.append((dynamic, backend))
        def run(x):
            self.shapes.append(tuple(x.shape))
            if self.error: raise self.error
            return net(x)
        return run


@pytest.fixture
def short(monkeypatch):
    "Measurements of a step; times such that compiling pays, as a GPU's may"
    monkeypatch.setattr(compiled, '_WARM', 1)
    monkeypatch.setattr(compiled, '_TIMED', 1)
    monkeypatch.setattr(compiled, 'is_worth_compiling', lambda seconds, left: True)
    monkeypatch.setattr(compiled.CompileTimes, 'is_faster', True)


@pytest.mark.parametrize('is_faster', [True, False])
def test_a_compiled_model_trains_the_same(dls, short, tmp_path, monkeypatch, capsys, is_faster):
    "Whole batches of the remaining steps, and nothing else, where it is faster; names in the checkpoint stay"
    plain, compiler = fit(learner(dls), checkpoint=tmp_path/'plain.safetensors'), Compiler()
    monkeypatch.setattr(torch, 'compile', compiler)
    monkeypatch.setattr(compiled.CompileTimes, 'is_faster', is_faster)
    learn = learner(dls)
    assert same(fit(learn, compiled.CompileModel(), checkpoint=tmp_path/'compiled.safetensors'), plain)
    assert set(compiler.shapes) == {(4, 3, 32, 32)} and compiler.of == [(False, 'inductor')]
    # two steps are timed, one tries it, two more are timed: of 2 whole batches in each of 4 epochs six remain
    assert len(compiler.shapes) == 1 + (6 if is_faster else 2)
    assert 'torch.compile: ' in capsys.readouterr().out and learn.model.compiled == ()
    files = [read_checkpoint(tmp_path/f'{name}.safetensors') for name in ('plain', 'compiled')]
    assert files[0].about['run'] == files[1].about['run'] and same(*[f.tensors['model'] for f in files])


def test_a_compiler_that_fails_is_said_and_done_without(dls, short, monkeypatch, capsys):
    plain = fit(learner(dls))
    monkeypatch.setattr(torch, 'compile', Compiler(RuntimeError('no C++ compiler')))
    assert same(fit(learner(dls), compiled.CompileModel()), plain)
    assert 'torch.compile failed (RuntimeError), so the model runs uncompiled' in capsys.readouterr().out


def test_short_fits_are_not_compiled(dls, monkeypatch):
    monkeypatch.setattr(compiled, '_WARM', 1)
    monkeypatch.setattr(compiled, '_TIMED', 1)
    monkeypatch.setattr(torch, 'compile', lambda *args, **kwargs: pytest.fail('compiled'))
    fit(learner(dls), compiled.CompileModel())


def test_where_a_model_may_be_compiled(dls, monkeypatch):
    "On a GPU, unless it was switched off; never on a CPU"
    on, off = learner(dls), learner(dls, compile=False)
    assert not compiled.can_compile(on) and not compiled.can_compile(off)
    monkeypatch.setattr(type(on.model), 'mean', SimpleNamespace(device=torch.device('cuda')), raising=False)
    assert compiled.can_compile(on) and not compiled.can_compile(off)


def test_torch_compile_itself(dls, short):
    "Its tracing, without a code generator"
    plain = fit(learner(dls))
    assert same(fit(learner(dls), compiled.CompileModel(backend='eager')), plain)


# the benchmark

@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['gpu.py', *map(str, words)])
        return runpy.run_path(str(BENCHMARKS/'gpu.py'), run_name='__main__')
    return run


def test_without_a_gpu_the_benchmark_says_so(script, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    script()
    assert 'No GPU here, so nothing was measured' in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_answers_all_questions(script, tmp_path, capsys):
    file = tmp_path/'rows.jsonl'
    # without that of the compiler, which takes a minute
    script('--device', 'cpu', '--small', '--results', file, '--only', 'training', 'fastai', 'evaluation', 'head', 'precision', 'bit')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    out = capsys.readouterr().out
    assert 'failed' not in out and 'no time left' not in out and len(rows) == 8
    assert all(r['run'] == 'gpu' and r['cpu'] and r['threads'] for r in rows)


def test_figures_with_and_without_avx512_stand_side_by_side():
    every = runpy.run_path(str(BENCHMARKS/'all.py'), run_name='all')
    old = dict(run='head', machine='2 cores, 2 threads, AVX512, no GPU')   # before rows had a field for it
    assert every['kind'](old) == every['kind'](dict(run='head', capability='AVX512'))
    assert every['kind'](old) != every['kind'](dict(run='head', capability='AVX2'))
    assert every['place'](dict(run='unknown')) > every['place'](dict(run='gpu')) and all((BENCHMARKS/s).exists() for s, *_ in every['RUNS'].values())
