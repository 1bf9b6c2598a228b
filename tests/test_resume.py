"Runs that are killed, and go on as if they had not been"
import json, os, random, signal

import pandas as pd, pytest, torch
from fastai.callback.core import Callback
from safetensors import safe_open

from fastbit.training import KeepBest, read_checkpoint, transfer_learner
from fastbit.data import image_dataloaders
from conftest import TINY, picture, run_fastbit, start_fastbit, wait_for_rows, write_folder
from forks import COMMAND, Fork

STEPS = 14
RUN = '''
"One run; with a moment to die at as its third word"
import hashlib, json, os, random, signal, sys, warnings
warnings.simplefilter('ignore')
import pandas as pd, torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from fastai.vision.augment import Brightness
from fastbit.training import checkpoint
from fastbit.training import KeepBest, transfer_learner
from fastbit.data import image_dataloaders

data, folder, kind, at, how = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

class Die(Callback):
    order, pieces = 90, 0
    def after_pred(self):
        self.pieces += 1
        if self.training and kind == 'in a step' and self.learn.train_iter == at and (how == 'cycle' or self.pieces % 3 == 2): die()
        if not self.training and kind == 'in an evaluation' and self.learn.train_iter >= at: die()
    def after_batch(self):
        if self.training and kind == 'between' and self.learn.train_iter == at: die()

save, replace = checkpoint.save_file, checkpoint.Path.replace
def half(tensors, path, metadata):
    save(tensors, path, metadata)
    if kind == 'in a save' and learn.train_iter >= at:
        with open(path, 'rb+') as f: f.truncate(os.path.getsize(path)//2)
        die()
def before_the_name(self, target):
    if kind == 'before the new name' and str(target).endswith('.safetensors') and learn.train_iter >= at: die()
    return replace(self, target)
checkpoint.save_file, checkpoint.Path.replace = half, before_the_name

set_seed(3)
dls = image_dataloaders(data, 'test_efficientnet', size=32, bs=4, num_workers=0, batch_tfms=[Brightness()])
learn = transfer_learner(dls, 'test_efficientnet', 'random', drop_rate=.3, cbs=KeepBest('accuracy'))
where = dict(checkpoint=f'{folder}/run.safetensors', checkpoint_every=3, cbs=Die())
if how == 'rule': learn.fit_hyperrule(batch_size=10, n_steps=STEPS, base_lr=.5, mixup=.4, eval_every=4, **where)
else:
    learn.fit_one_cycle(1, 1e-2)   # the head, whose averages the optimizer keeps
    learn.freeze_to(-3)
    learn.fit_one_cycle(2, slice(1e-3, 1e-2), **where)
h = learn.history
print(json.dumps(dict(weights=hashlib.sha256(b''.join(v.numpy().tobytes() for v in learn.model.state_dict().values())).hexdigest(),
    steps=h.steps.values.tolist(), epochs=h.epochs.drop(columns='seconds').values.tolist(), losses=[float(o) for o in learn.recorder.losses],
    random=[*torch.rand(2).tolist(), random.random(), learn.dls.train.rng.random()], best=learn.keep_best.best)))
'''.replace('STEPS', str(STEPS))


def run(how, data, folder, kind='never', at=0):
    "(exit status, what it printed, errors)"
    folder.mkdir(exist_ok=True)
    with Fork(RUN, data, folder, kind, at, how) as fork: out, err = fork.communicate(300)
    return fork.returncode, out, err


@pytest.fixture(scope='module', params=['rule', 'cycle'])
def straight(request, tmp_path_factory):
    "How it trains, a folder of images, and what the run says that nobody kills"
    root = tmp_path_factory.mktemp('straight')
    write_folder(root/'data', dict(blue=13, green=13, red=13))
    status, out, err = run(request.param, root/'data', root/'out')
    assert status == 0, err
    return request.param, root/'data', json.loads(out.splitlines()[-1])


def test_killed_three_times_and_the_same(straight, tmp_path):
    "SIGKILL in a step, in a save and in between, at random moments; each run goes on from where the one before was"
    how, folder, wanted = straight
    dice = random.SystemRandom()
    kinds, at = dice.sample(['in a step', 'in a save', 'between'], 3), sorted(dice.sample(range(1, STEPS-1), 3))
    story = f'{kinds} at {at}'
    for kind, k in zip(kinds, at):
        status, out, err = run(how, folder, tmp_path/'killed', kind, k)
        assert status == -signal.SIGKILL, (story, out, err)
    status, out, err = run(how, folder, tmp_path/'killed')
    assert status == 0, (story, err)
    assert 'resumes' in out or at[-1] < 3, story
    assert json.loads(out.splitlines()[-1]) == wanted, story


@pytest.mark.parametrize('kind, at', [('in an evaluation', 4), ('before the new name', 6)])
def test_killed_where_it_is_delicate(straight, tmp_path, kind, at):
    how, folder, wanted = straight
    assert run(how, folder, tmp_path/'killed', kind, at)[0] == -signal.SIGKILL
    status, out, err = run(how, folder, tmp_path/'killed')
    assert status == 0 and 'resumes' in out, err
    assert json.loads(out.splitlines()[-1]) == wanted
    assert [p.name for p in (tmp_path/'killed').iterdir()] == ['run.safetensors']   # what was half written is gone


@pytest.fixture
def dls(folder): return image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0)


ARGS = dict(batch_size=12, n_steps=8, base_lr=.3, eval_every=2, show=False)


def fit(learn, **kwargs):
    with learn.no_logging(), learn.no_bar(): learn.fit_hyperrule(**ARGS | kwargs)
    return learn


class Stop(Callback):
    "Interrupts in the given step"
    order = 90
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.learn.train_iter == self.at: raise KeyboardInterrupt


def interrupted(dls, path, at=5, **kwargs):
    torch.manual_seed(0)
    learn = transfer_learner(dls, **TINY)
    with pytest.raises(KeyboardInterrupt): fit(learn, checkpoint=path, cbs=Stop(at), **kwargs)
    return learn


@pytest.mark.parametrize('balance', ['none', 'loss', 'batches'])
def test_after_an_interrupt_the_learner_is_usable(make_folder, tmp_path, balance):
    dls = image_dataloaders(make_folder(dict(blue=22, green=12, red=6)), 'test_efficientnet', size=32, bs=8, num_workers=0, balance=balance)
    learn = interrupted(dls, tmp_path/'run.safetensors')
    assert not any(isinstance(cb, Stop) for cb in learn.cbs) and learn.opt is None
    fit(learn, checkpoint=tmp_path/'run.safetensors')   # in the same process, too
    torch.manual_seed(0)
    straight = fit(transfer_learner(dls, **TINY))
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), straight.model.state_dict().values()))
    pd.testing.assert_frame_equal(learn.history.steps, straight.history.steps, check_exact=True)
    assert learn.recorder.lrs == straight.recorder.lrs and len(learn.recorder.values) == 4


def test_an_interrupt_within_a_step_leaves_nothing_for_the_next_fit(dls):
    "A plain log would tell of a step that is no more"
    from fastbit.training import PlainLog
    class StopInside(Callback):
        pieces = 0
        def after_pred(self):
            self.pieces += self.training
            if self.pieces == 2: raise KeyboardInterrupt
    learn = transfer_learner(dls, **TINY)
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=StopInside())
    learn.fit(1, 1e-2, cbs=PlainLog(every=0))
    assert len(learn.history.steps) == 4


def test_a_finished_run_is_not_trained_again(dls, tmp_path):
    torch.manual_seed(0)
    path, learn = tmp_path/'run.safetensors', transfer_learner(dls, **TINY)
    fit(learn, checkpoint=path)
    class No(Callback):
        def before_train(self): raise AssertionError('trains')
    again = transfer_learner(dls, **TINY)
    fit(again, checkpoint=path, cbs=No())
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), again.model.state_dict().values()))
    pd.testing.assert_frame_equal(learn.history.epochs, again.history.epochs, check_exact=True)


@pytest.mark.parametrize('change, words', [
    (dict(fit=dict(n_steps=9)), 'rule: n steps 8 there, 9 here'), (dict(fit=dict(base_lr=.2)), 'rule: base lr'), (dict(fit=dict(mixup=.1)), 'rule: mixup 0.0 there, 0.1 here'),
    (dict(fit=dict(eval_every=3)), 'eval every 2 there, 3 here'), (dict(learner=dict(drop_rate=.1)), 'body: drop rate 0.0 there, 0.1 here'), (dict(learner=dict(bn='affine')), "bn 'frozen' there, 'affine' here"),
    (dict(learner=dict(arch='test_efficientnet_gn')), "arch 'test_efficientnet"), (dict(learner=dict(weights='file')), 'weights'),
    (dict(data=dict(balance='loss')), "balance None there, 'loss' here"), (dict(data=dict(balance='batches')), "balance None there, 'batches' here"), (dict(data=dict(size=40)), 'preprocessing'), (dict(data=dict(seed=1)), 'seed 0 there, 1 here'), (dict(data=dict(k_per_class=2)), 'training images 32 there, 6 here'), (dict(data=dict(other=True)), 'contents differ'),
    (dict(data=dict(renamed=True)), 'files labels and split differ'), (dict(learner=dict(cbs=[KeepBest('accuracy')])), 'keep best'), (dict(fit=dict(cbs=[KeepBest('accuracy')])), 'keep best')])
def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path, change, words):
    make = lambda **kwargs: image_dataloaders(folder, 'test_efficientnet', **dict(size=32, bs=8, num_workers=0) | kwargs)
    path, data, learner = tmp_path/'run.safetensors', dict(change.get('data', {})), TINY | change.get('learner', {})
    interrupted(make(), path)
    before = path.read_bytes()
    if learner['weights'] == 'file': learner['weights'] = tmp_path/'w.pth'; torch.save(transfer_learner(make(), **TINY).model.net.state_dict(), tmp_path/'w.pth')
    if data.pop('other', False): picture(99, 1).save(folder/'blue'/'000.png')   # the same name, another picture
    if data.pop('renamed', False): (folder/'blue'/'000.png').rename(folder/'blue'/'zzz.png')
    learn = transfer_learner(make(**data), **learner)
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match=words): fit(learn, checkpoint=path, **change.get('fit', {}))
    assert path.read_bytes() == before and all(torch.equal(v, state[k]) for k, v in learn.model.state_dict().items()) and learn.model.n_frozen == 6


def test_a_checkpoint_of_another_version_is_refused(dls, tmp_path, monkeypatch):
    from fastbit import __version__
    from fastbit.training import identity
    interrupted(dls, tmp_path/'run.safetensors')
    monkeypatch.setattr(identity, '__version__', '0.0.1')
    with pytest.raises(ValueError, match=f"training: fastbit '{__version__}' there, '0.0.1' here"): fit(transfer_learner(dls, **TINY), checkpoint=tmp_path/'run.safetensors')


def test_the_same_data_elsewhere_is_the_same_data(folder, tmp_path):
    path = tmp_path/'run.safetensors'
    interrupted(image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0), path)
    folder.rename(tmp_path/'moved')
    fit(transfer_learner(image_dataloaders(tmp_path/'moved', 'test_efficientnet', size=32, bs=8, num_workers=0), **TINY), checkpoint=path)


def test_weights_of_another_content_are_told_apart(dls, tmp_path):
    path, file = tmp_path/'run.safetensors', tmp_path/'w.pth'
    def learner(seed):
        torch.manual_seed(seed); torch.save(transfer_learner(dls, **TINY).model.net.state_dict(), file)
        return transfer_learner(dls, 'test_efficientnet', file)
    with pytest.raises(KeyboardInterrupt): fit(learner(0), checkpoint=path, cbs=Stop(3))
    fit(learner(0), checkpoint=path, stop_after=None)
    path.unlink()
    with pytest.raises(KeyboardInterrupt): fit(learner(0), checkpoint=path, cbs=Stop(3))
    with pytest.raises(ValueError, match='weights digest differ'): fit(learner(1), checkpoint=path)


def test_other_micro_batches_go_on_and_say_so(folder, tmp_path, capsys):
    make = lambda bs: transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, bs=bs, num_workers=0), **TINY)
    path = tmp_path/'run.safetensors'
    with pytest.raises(KeyboardInterrupt): fit(make(8), checkpoint=path, cbs=Stop(5))
    make(4).fit_hyperrule(**ARGS | dict(show=True), checkpoint=path)
    assert 'micro-batches of 8: the same numbers except for rounding' in capsys.readouterr().out


def test_a_checkpoint_runs_no_code_and_is_readable_by_others(dls, tmp_path):
    fit(transfer_learner(dls, **TINY), checkpoint=tmp_path/'run.safetensors')
    with safe_open(tmp_path/'run.safetensors', 'pt') as f: assert 'model/net.classifier.weight' in f.keys()
    meta, tensors = read_checkpoint(tmp_path/'run.safetensors')
    assert meta['run']['rule']['n_steps'] == 8 and meta['run']['data']['classes'] == ['blue', 'green', 'red']
    assert {'net.classifier.weight/grad_avg', 'net.conv_stem.weight/grad_avg'} <= set(tensors['optimizer'])


def test_a_checkpoint_that_cannot_be_written_is_said(dls, tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder'): fit(transfer_learner(dls, **TINY), checkpoint=tmp_path/'nowhere'/'run.safetensors')
    from fastbit.training import checkpoint
    path = tmp_path/'run.safetensors'
    interrupted(dls, path)
    before, save = path.read_bytes(), checkpoint.save_file
    def full(tensors, path, metadata): path.write_bytes(b'half'); raise OSError(28, 'No space left on device')
    checkpoint.save_file = full
    try:
        with pytest.raises(OSError, match='No space left on device.*the previous one'): fit(transfer_learner(dls, **TINY), checkpoint=path)
    finally: checkpoint.save_file = save
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir() if 'run' in p.name] == ['run.safetensors']


@pytest.mark.skipif(os.name != 'posix', reason='permissions are of Unix')
def test_a_checkpoint_is_readable_by_whom_other_files_are(dls, tmp_path):
    from safetensors.torch import save_file
    fit(transfer_learner(dls, **TINY), checkpoint=tmp_path/'run.safetensors')
    (tmp_path/'other').touch(); save_file(dict(a=torch.ones(1)), tmp_path/'plain.safetensors')
    mode = lambda name: (tmp_path/name).stat().st_mode & 0o777
    assert mode('run.safetensors') == mode('other')
    assert mode('plain.safetensors') == 0o600   # once safetensors leaves that alone, `whole_file` need not see to it


# One-cycle

CYCLE = dict(n_epoch=3, lr_max=1e-2)


def cycle(learn, **kwargs):
    learn.unfreeze()
    with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(**CYCLE | kwargs)
    return learn


def seeded(dls, **kwargs):
    torch.manual_seed(0)
    return transfer_learner(dls, **TINY, **kwargs)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values())) and a.history.steps.equals(b.history.steps) and a.recorder.hps == b.recorder.hps


def state(learn) -> tuple:
    "All that has to be the same, to compare with later"
    weights = [v.clone() for v in learn.model.state_dict().values()]
    return weights, learn.history.steps.copy(), list(learn.recorder.hps), learn.history.epochs.drop(columns='seconds')


def same_states(a, b):
    (weights, steps, hps, epochs), (weights2, steps2, hps2, epochs2) = a, b
    return all(map(torch.equal, weights, weights2)) and steps.equals(steps2) and hps == hps2 and epochs.equals(epochs2)


@pytest.fixture(scope='module', params=[(0, 'batches'), (2, 'loss')], ids=str)   # with 'loss' the order is the plain one
def straight_cycles(request, tmp_path_factory):
    "What makes a learner with so many loader processes, and its states after one cycle and after the next if nobody stops it"
    from fastai.vision.augment import Brightness
    folder = write_folder(tmp_path_factory.mktemp('cycles')/'data', dict(blue=22, green=12, red=6))
    num_workers, balance = request.param
    def make():
        dls = image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=num_workers, balance=balance, batch_tfms=[Brightness(max_lighting=.5)])
        return seeded(dls, drop_rate=.4)
    learn = cycle(make())
    one = state(learn)
    torch.manual_seed(1)
    return make, one, state(cycle(learn))


@pytest.mark.parametrize('at, every', [(1, 1), (4, 1), (6, 2), (8, 4), (11, 3)])   # four steps an epoch
def test_one_cycle_goes_on_in_the_middle_of_an_epoch(straight_cycles, tmp_path, at, every):
    make, one, two = straight_cycles
    path = tmp_path/'run.safetensors'
    with pytest.raises(KeyboardInterrupt): cycle(make(), checkpoint=path, checkpoint_every=every, cbs=Stop(at))
    assert read_checkpoint(path, tensors=False)[0]['done'] == max(k for k in range(every, at+1, every) if k < at or at % 4)   # the last step of an epoch is saved after the evaluation
    torch.rand(7)
    resumed = cycle(make(), checkpoint=path, checkpoint_every=every)
    assert same_states(state(resumed), one)
    assert resumed.first_batch == 0 and resumed.dls.train.first == 0
    torch.manual_seed(1)
    assert same_states(state(cycle(resumed)), two)   # the next fit, too


def test_the_slow_weights_of_ranger_are_resumed(dls, tmp_path):
    from fastai.optimizer import ranger
    again = lambda: seeded(dls.__class__(*[dl.new() for dl in dls.loaders]), opt_func=ranger)
    path, straight = tmp_path/'run.safetensors', cycle(again())
    with pytest.raises(KeyboardInterrupt): cycle(again(), checkpoint=path, checkpoint_every=1, cbs=Stop(9))
    resumed = cycle(again(), checkpoint=path, checkpoint_every=1)
    assert same(straight, resumed) and straight.opt.count == resumed.opt.count > 6


def test_epochs_are_saved_every_half_minute_and_the_last_always(dls, tmp_path, monkeypatch):
    from fastbit.training import checkpoint
    class Seen(Callback):
        order, done = 80, ()
        def after_epoch(self): self.done = (*self.done, read_checkpoint(path, tensors=False)[0]['done'] if path.exists() else 0)
    path, seen = tmp_path/'run.safetensors', Seen()
    cycle(seeded(dls), checkpoint=path, cbs=seen)
    assert seen.done == (0, 0, 12)
    path.unlink()
    monkeypatch.setattr(checkpoint, 'SAVE_SECONDS', 0.)
    cycle(seeded(dls), checkpoint=path, cbs=seen)
    assert seen.done[3:] == (4, 8, 12)


def test_one_cycle_is_fastai_s_with_a_checkpoint_or_without(dls, tmp_path):
    from fastai.learner import Learner
    plain = seeded(dls); plain.unfreeze()
    with plain.no_logging(), plain.no_bar(): Learner.fit_one_cycle(plain, **CYCLE)
    assert same(plain, cycle(seeded(dls.__class__(*[dl.new() for dl in dls.loaders])))) and same(plain, cycle(seeded(dls.__class__(*[dl.new() for dl in dls.loaders])), checkpoint=tmp_path/'run.safetensors', checkpoint_every=1))


def test_fine_tune_is_fastai_s_and_goes_on_after_its_first_fit(dls, tmp_path):
    from fastai.learner import Learner
    again = lambda **kwargs: seeded(dls.__class__(*[dl.new() for dl in dls.loaders]), drop_rate=.4, **kwargs)
    def tune(learn, f=None, **kwargs):
        with learn.no_logging(), learn.no_bar(): (f or learn.fine_tune)(2, 1e-2, **kwargs)
        return learn
    path, plain = tmp_path/'run.safetensors', again()
    tune(plain, lambda *args: Learner.fine_tune(plain, *args))
    assert same(plain, tune(again())) and same(plain, tune(again(), checkpoint=path, checkpoint_every=1))
    path.unlink()
    class InTheSecond(Callback):
        order = 90
        def after_batch(self):
            if self.training and self.model.n_frozen == 0 and self.learn.train_iter == 6: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): tune(again(), checkpoint=path, checkpoint_every=1, cbs=InTheSecond())
    class No(Callback):
        def before_train(self): assert self.model.n_frozen == 0, 'the classifier was trained before'
    assert same(plain, tune(again(), checkpoint=path, checkpoint_every=1, cbs=No()))
    refused = again()
    n_frozen = refused.model.n_frozen
    with pytest.raises(ValueError, match="before 'fine_tune, freeze_epochs=1, .* there, 'fine_tune, freeze_epochs=2"): tune(refused, checkpoint=path, freeze_epochs=2)
    assert n_frozen and refused.model.n_frozen == n_frozen, 'a refused call changes nothing'
    with pytest.raises(ValueError, match='into which file'): tune(again(), checkpoint_every=2)


@pytest.mark.parametrize('change, words', [
    (dict(fit=dict(n_epoch=4)), 'one_cycle: n epoch 3 there, 4 here'), (dict(fit=dict(lr_max=slice(1e-3, 1e-2))), r'one_cycle: lr max 0.01 there, \[0.001, 0.01\] here'), (dict(fit=dict(pct_start=.5)), 'pct start'), (dict(fit=dict(div=10.)), 'one_cycle: div 25.0 there'),
    (dict(fit=dict(wd=.1)), 'one_cycle: wd'), (dict(fit=dict(moms=(.9, .8, .9))), 'one_cycle: moms'), (dict(fit=dict(before='the head')), "before '' there, 'the head' here"), (dict(fit=dict(cbs=[KeepBest('accuracy')])), 'keep best'),
    (dict(data=dict(bs=4)), 'one_cycle: batch 8 there, 4 here'), (dict(data=dict(seed=1)), 'seed 0 there, 1 here'), (dict(learner=dict(drop_rate=.1)), 'drop rate')])
def test_one_cycle_refuses_a_checkpoint_of_another_run(folder, tmp_path, change, words):
    make = lambda **kwargs: image_dataloaders(folder, 'test_efficientnet', **dict(size=32, bs=8, num_workers=0) | kwargs)
    path = tmp_path/'run.safetensors'
    with pytest.raises(KeyboardInterrupt): cycle(seeded(make()), checkpoint=path, checkpoint_every=1, cbs=Stop(3))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words): cycle(seeded(make(**change.get('data', {})), **change.get('learner', {})), checkpoint=path, **change.get('fit', {}))
    assert path.read_bytes() == before


def test_one_cycle_says_what_a_checkpoint_cannot_hold(folder, dls, tmp_path):
    from fastai.callback.training import GradientAccumulation
    from fastai.vision.data import ImageDataLoaders
    from fastai.vision.augment import Resize
    path = tmp_path/'run.safetensors'
    others = ImageDataLoaders.from_folder(folder, valid_pct=.2, seed=0, bs=8, item_tfms=Resize(32), num_workers=0)
    with pytest.raises(ValueError, match='needs the loaders of image_dataloaders.*TfmdDL.*fit_hyperrule'): cycle(seeded(others), checkpoint=path)
    for words, kwargs in (('GradientAccumulation', dict(cbs=GradientAccumulation(32))), ('start_epoch', dict(start_epoch=1)), ('checkpoint_every=0', dict(checkpoint_every=0))):
        with pytest.raises(ValueError, match=words): cycle(seeded(dls), checkpoint=path, **kwargs)
    learn = seeded(dls); learn.recorder.train_metrics = True
    with pytest.raises(ValueError, match='train_metrics'): cycle(learn, checkpoint=path)
    with pytest.raises(ValueError, match='into which file'): cycle(seeded(dls), checkpoint_every=3)
    with pytest.raises(FileNotFoundError, match='no folder'): cycle(seeded(dls), checkpoint=tmp_path/'nowhere'/'run.safetensors')
    assert not path.exists()


@pytest.mark.parametrize('how', ['rule', 'cycle'])
def test_the_loss_scale_of_fp16_is_kept(dls, tmp_path, how):
    "It begins at 65536 and is halved by the first steps that overflow; a new one would skip steps"
    path = tmp_path/'run.safetensors'
    learner = lambda: seeded(dls.__class__(*[dl.new() for dl in dls.loaders]), precision='fp16')
    train = lambda l, **kwargs: cycle(l, checkpoint_every=1 if kwargs else None, **kwargs) if how == 'cycle' else fit(l, **kwargs)
    class Lower(Callback):
        order = 40
        def after_batch(self):
            if self.training and self.learn.train_iter == 2: self.learn.scaler.update(128.)
    scales = []
    class Look(Callback):
        order = 80
        def before_batch(self): scales.append(self.learn.scaler.get_scale())
    with pytest.raises(KeyboardInterrupt): train(learner(), checkpoint=path, cbs=[Lower(), Stop(7)])
    train(learner(), checkpoint=path, cbs=Look())
    assert scales and set(scales) == {128.}


# Keeping the best

def test_the_best_over_all_phases_is_kept(dls):
    learn = transfer_learner(dls, **TINY, cbs=KeepBest('accuracy'))
    with learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(3, .1)
        best, weights = learn.keep_best.best, {k: v.clone() for k, v in learn.model.state_dict().items()}
        assert learn.evaluate(show=False).accuracy == pytest.approx(best) == pytest.approx(learn.history.epochs.accuracy.max())
        learn.unfreeze(); learn.fit_one_cycle(2, 3.)   # a second phase that ruins everything
    assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items()) or learn.history.epochs.accuracy[3:].max() > best
    assert learn.evaluate(show=False).accuracy == pytest.approx(learn.history.epochs.accuracy.max())
    with torch.no_grad(): learn.model.net.classifier.bias += 1
    changed = learn.model.net.classifier.bias.clone()
    learn.validate(); learn.get_preds(); learn.tta(show=False); learn.lr_find(num_it=20, show_plot=False)
    assert torch.equal(learn.model.net.classifier.bias, changed)   # only a fit goes back


def test_early_stopping_of_a_resumed_run_is_that_of_the_straight_one(dls, tmp_path):
    def learner():
        torch.manual_seed(0)
        return transfer_learner(dls, **TINY, cbs=KeepBest('accuracy', patience=2))
    args = dict(n_steps=30, base_lr=30., eval_every=2, checkpoint_every=3)
    straight = fit(learner(), **args)
    n = len(straight.history.steps)
    assert n < 30 and straight.keep_best.waited == 2
    path = tmp_path/'run.safetensors'
    with pytest.raises(KeyboardInterrupt): fit(learner(), **args, checkpoint=path, cbs=Stop(n-1))
    resumed, finished = fit(learner(), **args, checkpoint=path), fit(learner(), **args, checkpoint=path)
    fit(learner(), **args | dict(checkpoint_every=1000), checkpoint=tmp_path/'end.safetensors')
    assert read_checkpoint(tmp_path/'end.safetensors')[0]['parts']['callback rule_steps']['done'] == n   # where it stopped is saved
    for other in (resumed, finished):
        assert len(other.history.steps) == n and other.keep_best.best == straight.keep_best.best
        assert all(torch.equal(a, b) for a, b in zip(other.model.state_dict().values(), straight.model.state_dict().values()))


# The command

BY_RULE = ('--recipe', 'hyperrule', '--arch', 'test_efficientnet', '--weights', 'random', '--size', 32, '--bs', 4, '--batch-size', 10, '--steps', 60, '--eval-every', 4,
           '--checkpoint-every', 3, '--mixup', '.3', '--workers', 0)


ONE_CYCLE = (*BY_RULE[2:10], '--recipe', 'onecycle', '--epochs', 16, '--checkpoint-every', 3, '--workers', 0)   # a row of the head, 15 of everything


@pytest.mark.parametrize('words, head', [(BY_RULE, 0), (ONE_CYCLE, 1)])
def test_the_command_goes_on_after_sigkill_at_any_moment(folder, tmp_path, words, head):
    straight = run_fastbit('baseline', folder, *words, '--out', tmp_path/'straight', cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    dice = random.SystemRandom()
    for rows in (dice.randint(1, 3), dice.randint(4, 8)):   # of 15: one an evaluation
        with Fork(COMMAND, 'baseline', folder, *words, cwd=tmp_path) as run:
            wait_for_rows(run, tmp_path/'fastbit-runs', head+rows)
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
    again = start_fastbit if head else run_fastbit   # a new Python, whose hashes are others
    resumed = again('baseline', folder, *words, cwd=tmp_path)   # without --out: it finds what it had begun
    assert resumed.returncode == 0 and 'resume from step' in resumed.stdout, resumed.stdout + resumed.stderr
    out, = (tmp_path/'fastbit-runs').iterdir()
    same = lambda name, drop=(): pd.testing.assert_frame_equal(*(pd.read_csv(o/name).drop(columns=list(drop)) for o in (out, tmp_path/'straight')), check_exact=True)
    same('history.csv', ['seconds']); same('predictions.csv')
    assert len(pd.read_csv(out/'history.csv')) == head+15
    assert (out/'model'/'model.safetensors').read_bytes() == (tmp_path/'straight'/'model'/'model.safetensors').read_bytes()
    assert not (out/'checkpoint.safetensors').exists()   # what it was for is there
    run_fastbit('baseline', folder, *(BY_RULE[:12] + ('--steps', 2) if not head else (*ONE_CYCLE[:10], '--epochs', 2)), cwd=tmp_path)
    assert len(list((tmp_path/'fastbit-runs').iterdir())) == 2   # another command, another folder


def test_a_command_on_other_data_is_told_what_to_type(folder, tmp_path, monkeypatch, capsys):
    "and not that it would go on"
    from fastbit.baseline import result as module
    from fastbit.cli.command import main
    args = ['baseline', str(folder), *map(str, ONE_CYCLE[:10]), '--epochs', '2', '--workers', '0']
    monkeypatch.chdir(tmp_path)
    def stop(*_): raise OSError('The disk is gone.')
    with monkeypatch.context() as m:
        m.setattr(module, 'tta_probs', stop)
        assert main(args) == 2
    assert capsys.readouterr().err.splitlines()[-1] == 'fastbit: error: The disk is gone. Rerun the same command to resume from the last checkpoint.'
    picture(99, 1).save(folder/'blue'/'new.png')
    assert main(args) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert 'training images 32 there, 33 here' in last and last.endswith("Choose another file (--out FOLDER), or repeat that run's settings.")


def test_two_runs_do_not_write_one_checkpoint(folder, tmp_path, capsys):
    from fastbit.training.checkpoint import checkpoint_lock
    from fastbit.cli.command import main
    args = ['baseline', str(folder), *map(str, BY_RULE), '--out', str(tmp_path/'run')]
    (tmp_path/'run').mkdir()
    with checkpoint_lock(tmp_path/'run'/'checkpoint.safetensors'): assert main(args) == 2
    assert 'Another run is writing' in capsys.readouterr().err.splitlines()[-1]
