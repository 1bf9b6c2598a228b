"The recipe `auto`: what it decides, that cached training is live training, that it resumes, and that it never ends below its head"
import dataclasses, json, re
from html import escape

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.metrics import accuracy
from safetensors.torch import load_file

from fastbit.baseline import Auto, OneCyclePhase, UpperPhase, baseline
from fastbit.baseline.budget import TimeLimit
from fastbit.baseline.phases import HeadPhase, Scores
from fastbit.bodies.model import run_stages
from fastbit.core.restore import temp_attrs
from fastbit.data import image_dataloaders, image_table
from fastbit.data.features import FeatureDL, Features, view_pixels
from fastbit.training import logistic_head, transfer_learner
from fastbit.training.callbacks import KeepBest
from fastbit.training.checkpoint import checkpoint_lock
from fastbit.training.guards import LossNotFinite
from fastbit.training.upper import SmoothLabels, distinct_views, norms_as, upper_length
from conftest import TINY, write_folder

FROM = 3   # of the 6 stages of the tiny body


@pytest.fixture(scope='module')
def data(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('auto')/'data', dict(blue=14, green=14, red=12))


def learner(data, bs=8, balance='none', **kwargs):
    torch.manual_seed(0)
    dls = image_dataloaders(data, TINY['arch'], size=32, bs=bs, num_workers=0, device='cpu', balance=balance)
    return transfer_learner(dls, **TINY, metrics=accuracy, **kwargs)


def quiet(learn, f, *args, **kwargs):
    with learn.no_logging(), learn.no_bar(): f(*args, **kwargs)
    return learn


def state(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


# the fit

class StepLosses(Callback):
    "The loss of every step"
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append(self.loss.item())


class LiveMix(Callback):
    "Each step's pixels through the frozen stages, then mixed there, by hand"
    def __init__(self, alpha, seed): self.alpha, self.seed = alpha, seed
    def before_fit(self):
        self.plain, self.step = torch.nn.CrossEntropyLoss(label_smoothing=.1), 0
        self.valid_loss = self.learn.loss_func
    def before_batch(self):
        model, (x,), (y,) = self.learn.model, self.xb, self.yb
        if not self.training: return
        rng = np.random.RandomState([self.seed, self.step, 2])
        lam, order = rng.beta(self.alpha, self.alpha), rng.permutation(len(x))
        lam, self.step = max(lam, 1-lam), self.step+1
        with torch.no_grad(): a = run_stages(model.net, model.stages, model.normalized(x), last=FROM)
        self.learn.xb, model.starts_at = (lam*a + (1-lam)*a[order],), FROM
        self.learn.loss_func = lambda out, y: lam*self.plain(out, y) + (1-lam)*self.plain(out, y[order])
    def after_batch(self): self.learn.model.starts_at, self.learn.loss_func = 0, self.valid_loss


def live_fit(learn, length, views, bn, mixup):
    "What `fit_upper` does, with pixels instead of activations: every stage runs in every step"
    dls = learn.dls
    def pixels(dl, k):
        rows = np.stack([view_pixels(p, v, dls.preprocess, dl.seed) for p in dl.items for v in range(k)])
        return Features(rows, np.arange(len(rows)).reshape(-1, k), len(rows), 0., None, '')
    labels = [torch.tensor([int(dl.dataset.tls[1][i]) for i in range(dl.n)]) for dl in dls.loaders]
    train = FeatureDL(pixels(dls.train, views), labels[0], dls.bs, shuffle=True, seed=dls.train.seed, repeat=length.repeat, even=bn == 'train')
    valid = FeatureDL(pixels(dls.valid, 1), labels[1], dls.bs)
    learn.freeze_to(FROM)
    losses = StepLosses()
    with temp_attrs(learn, dls=DataLoaders(train, valid, device='cpu')), norms_as(learn.model, bn):
        learn.fit_one_cycle(length.n_epoch, 4e-3, cbs=[losses, LiveMix(mixup, dls.train.seed) if mixup else SmoothLabels(.1)])
    return losses.seen


@pytest.mark.parametrize('bn, views, mixup', [('train', 4, 0), ('frozen', 1, 0), ('train', 2, .4)])
def test_cached_training_is_live_training_step_for_step(data, bn, views, mixup):
    cached, live, losses = learner(data, 9), learner(data, 9), StepLosses()   # 32 images: batches of 8, or of 9 and a last one of 5
    before = state(cached)
    length = upper_length(cached.dls.train.n, 9, 24)
    loss = cached.loss_func
    quiet(cached, cached.fit_upper, FROM, 24, 4e-3, views=views, bn=bn, mixup=mixup, cbs=losses)
    assert cached.loss_func is loss
    with live.no_logging(), live.no_bar(): seen = live_fit(live, length, views, bn, mixup)
    assert len(seen) == len(losses.seen) == length.n_steps
    torch.testing.assert_close(torch.tensor(losses.seen), torch.tensor(seen), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(cached.get_preds()[0], live.get_preds()[0], rtol=1e-2, atol=1e-3)
    lower = [n for s in cached.model.stages[:FROM] for n in s.modules]
    frozen = [k for k in before if k.startswith('net.') and k[4:].rpartition('.')[0] in lower]
    assert frozen and all(torch.equal(before[k], cached.model.state_dict()[k]) for k in frozen)
    moved = {k for k, v in cached.model.state_dict().items() if not torch.equal(v, before[k])}
    assert any('running_mean' in k for k in moved) == (bn == 'train') and cached.model.bn == 'frozen'


class Stop(Callback):
    def __init__(self, at): self.at = at
    def after_step(self):
        if self.learn.train_iter == self.at: raise KeyboardInterrupt


# 4 batches a pass, 2 passes an epoch: in a pass, at the end of an epoch, later
@pytest.mark.parametrize('at, balance', [(3, 'none'), (8, 'none'), (11, 'none'), (3, 'loss'), (11, 'batches')])
def test_it_resumes_bit_for_bit(data, tmp_path, at, balance):
    how = dict(freeze_to=FROM, n_steps=64, views=3, mixup=.4)
    straight, file = learner(data, balance=balance), tmp_path/'run.safetensors'
    quiet(straight, straight.fit_upper, **how)
    assert upper_length(straight.dls.train.n, 8, 64).repeat == 2
    broken = learner(data, balance=balance)
    with pytest.raises(KeyboardInterrupt): quiet(broken, broken.fit_upper, **how, checkpoint=file, checkpoint_every=1, cbs=Stop(at))
    assert broken.loss_func(torch.zeros(2, broken.n_out), torch.tensor([0, 1])).item() == pytest.approx(np.log(broken.n_out))
    again = learner(data, balance=balance)
    quiet(again, again.fit_upper, **how, checkpoint=file, checkpoint_every=1)
    assert same(state(straight), state(again))
    columns = ['phase', 'epoch', 'train_loss', 'valid_loss', 'accuracy']
    pd.testing.assert_frame_equal(straight.history.epochs[columns], again.history.epochs[columns])
    assert len(again.history.steps) == 64 and again.first_batch == 0
    other = learner(data, balance=balance)
    with pytest.raises(ValueError, match='upper: views 3 there, 2 here'): other.fit_upper(FROM, 64, views=2, mixup=.4, checkpoint=file)
    with pytest.raises(ValueError, match='upper: mixup 0.4 there, 0.2 here'): other.fit_upper(FROM, 64, views=3, mixup=.2, checkpoint=file)


def test_batches_of_a_pass_are_even_and_every_image_comes_once(data):
    features = Features(np.arange(10, dtype=np.float32)[:, None], np.arange(10)[:, None], 10, 0., None, '')
    dl = FeatureDL(features, torch.arange(10), 4, shuffle=True, repeat=2, even=True)
    batches = [y.tolist() for _, y in dl]
    assert len(dl) == len(batches) == 6 and {len(b) for b in batches} == {3, 4}
    assert sorted(sum(batches[:3], [])) == sorted(sum(batches[3:], [])) == list(range(10)) and batches[:3] != batches[3:]
    dl.set_order_state(0)
    dl.first = 4
    assert [y.tolist() for _, y in dl] == batches[4:]


def test_validation_measures_the_plain_loss(data):
    smooth, plain = learner(data), learner(data)
    quiet(smooth, smooth.fit_upper, FROM, 8, label_smoothing=.3)
    loss, _ = smooth.validate()
    row = smooth.history.rows[-1]
    assert row['valid_loss'] == pytest.approx(loss, rel=1e-4)
    quiet(plain, plain.fit_upper, FROM, 8, label_smoothing=0.)
    assert not same(state(smooth), state(plain))
    for bad in (-.1, 1.):
        with pytest.raises(ValueError, match='label_smoothing'): plain.fit_upper(FROM, 8, label_smoothing=bad)
    with pytest.raises(ValueError, match='nothing would be frozen'): plain.fit_upper(0)
    with pytest.raises(ValueError, match="bn='x'"): plain.fit_upper(FROM, bn='x')
    with pytest.warns(UserWarning, match='was reset'): quiet(plain, plain.fit_upper, FROM, 4)


def test_views_that_are_all_the_same_are_computed_once(data):
    dls = image_dataloaders(data, TINY['arch'], size=32, bs=8, num_workers=0, device='cpu', crop=False, flip=False)
    assert distinct_views(dls, 8) == 1
    learn = transfer_learner(dls, **TINY)
    quiet(learn, learn.fit_upper, FROM, 4)
    assert learn.head_features[0].index.shape[1] == 1


# the better one

def upper(learn, **how):
    length = upper_length(learn.dls.train.n, 8, 8)
    return UpperPhase(**dict(name='from blocks.2', freeze_to=FROM, length=length, views=2) | how)


def test_a_second_phase_that_ends_below_its_head_is_taken_back(data):
    "Its rate is far too high"
    for spoiled in (lambda l: upper(l, lr=8.), lambda l: OneCyclePhase('all layers', 1, 0, 5., 5., keep_better=True)):
        learn = learner(data)
        quiet(learn, HeadPhase().fit, learn)
        head = state(learn)
        words = []
        quiet(learn, lambda: words.append(spoiled(learn).fit(learn)))
        assert words[0].startswith('head rather than'), words
        assert same(head, state(learn)) and learn.model.n_frozen == len(learn.model.stages)-1


def test_a_second_phase_that_is_better_stays(data, monkeypatch):
    learn = learner(data)
    quiet(learn, HeadPhase().fit, learn)
    measured, seen = Scores.of, []
    def measure(learn, metric=None):   # the first one, of the head, is said to be bad
        seen.append(measured(learn, metric))
        return seen[-1]._replace(calibrated=9.) if len(seen) == 1 else seen[-1]
    monkeypatch.setattr(Scores, 'of', measure)
    head, words = state(learn), []
    quiet(learn, lambda: words.append(upper(learn).fit(learn)))
    assert words[0].startswith('from blocks.2 rather than head, by validation loss after calibration') and not same(head, state(learn))
    assert len(seen) == 2 and seen[0].loss == pytest.approx(learn.history.rows[0]['valid_loss'], rel=1e-4)
    assert all(o.calibrated <= o.loss + 1e-9 for o in seen) and seen[1].accuracy == pytest.approx(learn.history.rows[-1]['accuracy'])


def test_the_choice_is_by_calibrated_loss_unless_a_metric_was_asked_for():
    sure, right = Scores(accuracy=.8, loss=1.2, calibrated=.5), Scores(accuracy=.7, loss=.6, calibrated=.55)
    assert sure.beats(right) and not right.beats(sure)
    assert not right.beats(sure, 'valid_loss') and sure.beats(right, 'accuracy')   # plain loss is the loss of label smoothing, too
    assert Scores(.7, .6, .4).beats(Scores(.7, .5, .5), 'accuracy') and not sure.beats(sure)
    assert Scores(.9, .6, .7).beats(Scores(.7, .5, .5), 'accuracy')


# the recipe

def test_auto_says_what_it_decided_and_what_it_kept(data, tmp_path, capsys):
    plan = baseline(data, **TINY, size=32, dry_run=True, verbose=False)
    assert plan.recipe == 'auto' and [type(p) for p in plan.phases] == [HeadPhase, UpperPhase, OneCyclePhase]
    assert [p.only_after_head for p in plan.phases] == [False, False, True] and plan.seconds < plan.most_seconds
    assert 'with all layers,' in str(plan) and 'with all layers,' in plan.short() and 'all layers, only where the head is better, 7 epochs' in str(plan)
    assert 'because' in str(plan) and 'activations of' in str(plan) and 'logistic regression' in str(plan)
    result = baseline(data, **TINY, size=32, n_steps=12, out=tmp_path/'out', verbose=False)
    assert ' rather than ' in result.chosen and 'slightly optimistic' in str(result)
    assert result.epochs.phase.iloc[0] == 'head' and result.epochs.phase.iloc[1].startswith('from ')
    again = baseline(data, **TINY, recipe=Auto(n_steps=12), size=32, out=tmp_path/'again', verbose=False)
    a, b = (load_file(tmp_path/o/'model'/'model.safetensors') for o in ('out', 'again'))
    assert same(a, b) and again.evaluation == result.evaluation
    assert 'rather than' in (tmp_path/'out'/'report.html').read_text()


SPOILED = dict(**TINY, size=32, n_steps=8, lr=8., checkpoint_every=1, verbose=False)   # a rate that is far too high for the upper stages


@pytest.fixture(scope='module')
def rescued(data, tmp_path_factory): return baseline(data, **SPOILED, out=tmp_path_factory.mktemp('rescued')/'out')


def test_the_printed_choice_is_short_and_the_values_are_in_the_files(rescued):
    line, = re.findall('^chosen +(.*)$', str(rescued), re.M)
    assert line.startswith('head rather than from blocks.2, by validation loss') and line.endswith(' (same images: slightly optimistic)')
    assert '0.' not in line and line.count('(') == 1 and '  ' not in line and len(line) < len(rescued.chosen)
    saved = json.loads((rescued.out/'results.json').read_text())
    assert saved['chosen'] == rescued.chosen and rescued.chosen in saved['methods'] and re.search(r'loss after calibration \(\d', saved['chosen'])
    assert escape(rescued.chosen).replace('&#x27;', '&#39;') in (rescued.out/'report.html').read_text()


def test_all_layers_train_where_the_head_was_better_than_the_upper_stages(data, rescued):
    result = rescued
    first, second = result.chosen.split('; ')
    assert first.startswith('head rather than from blocks.2, by') and second.startswith('the mean of head and all layers rather than head')
    assert list(result.epochs.phase.unique()) == ['head', 'from blocks.2', 'all layers'] == list(result.phases.stage)
    assert not list(result.out.glob('checkpoint*'))
    learn = learner(data)
    quiet(learn, HeadPhase().fit, learn)
    learn.freeze_to(FROM)   # as after upper stages that were better
    left_out = OneCyclePhase('all layers', 1, 0, 5., 5., keep_better=True, only_after_head=True)
    before = state(learn)
    assert left_out.is_left_out(learn) and left_out.fit(learn) == '' and same(before, state(learn))


def test_the_mean_of_head_and_all_layers_is_their_mean(data):
    ends = {}
    for share in (0., .5, 1.):
        learn = learner(data)
        quiet(learn, HeadPhase().fit, learn)
        head = state(learn)
        phase = OneCyclePhase('all layers', 2, 0, 1e-2, 1e-2, share=share)
        quiet(learn, phase.fit, learn)
        ends[share] = state(learn)
    assert same(head, ends[0.]) and not same(head, ends[1.])
    for k, v in ends[.5].items():
        expected = (head[k] + ends[1.][k])/2 if v.is_floating_point() else ends[1.][k]
        torch.testing.assert_close(v, expected, rtol=1e-6, atol=1e-7)
    assert 'then the mean of head and all layers' in str(OneCyclePhase('all layers', 2, 0, 1., 1., share=.5))
    plan = baseline(data, **TINY, size=32, bn='train', dry_run=True, verbose=False)   # statistics of two sets of weights have no mean
    assert (plan.phases[1].bn, plan.phases[2].bn, plan.phases[2].share) == ('train', 'frozen', .5)


def test_the_mean_is_what_is_kept_and_saved(data, rescued):
    "By hand: the head, then all layers, then half of each"
    learn = learner(data, bs=32)
    quiet(learn, HeadPhase().fit, learn)
    head = state(learn)
    everything = dataclasses.replace(rescued.plan.phases[2], share=1., keep_better=False)
    quiet(learn, everything.fit, learn)
    saved = load_file(rescued.out/'model'/'model.safetensors')
    after = learn.model.net.state_dict()
    start = {k.removeprefix('net.'): v for k, v in head.items()}
    for k, v in saved.items():
        if v.is_floating_point(): torch.testing.assert_close(v, (start[k] + after[k])/2, rtol=1e-4, atol=1e-5)


def test_a_phase_that_fails_after_the_head_leaves_the_head(data, tmp_path, monkeypatch):
    def fails(e):
        def fit(learn, *args, **kwargs):
            for p in learn.model.parameters(): p.data.add_(1.)   # half-trained
            raise e
        return fit
    for error, words in ((torch.OutOfMemoryError('CUDA out of memory'), 'did not fit in memory'), (LossNotFinite('step 3'), 'diverged')):
        learn = learner(data, cbs=KeepBest('valid_loss'))
        quiet(learn, HeadPhase().fit, learn)
        before = state(learn)
        monkeypatch.setattr(type(learn), 'fit_one_cycle', fails(error))
        last = OneCyclePhase('all layers', 1, 0, 1e-3, 1e-3, keep_better=True, only_after_head=True, share=.5)
        with pytest.warns(UserWarning, match='The head is kept'): said = last.fit(learn)
        assert said == f'head, since training all layers {words}' and same(before, state(learn))
        assert learn.model.n_frozen == len(learn.model.stages)-1
        with pytest.raises(type(error)): dataclasses.replace(last, only_after_head=False).fit(learn)
        monkeypatch.undo()


def test_a_second_run_in_the_folder_is_refused_before_the_features(data, tmp_path):
    (tmp_path/'out').mkdir()
    with checkpoint_lock(tmp_path/'out'/'checkpoint.safetensors'), pytest.raises(ValueError, match='Another run is writing'):
        baseline(data, **SPOILED, out=tmp_path/'out')
    assert not list((tmp_path/'out').glob('log.jsonl')) or not (tmp_path/'out'/'log.jsonl').read_text()


def test_weights_that_were_not_kept_are_not_the_best_of_a_later_phase(data):
    "`KeepBest` compared all layers with the upper stages, and could restore those"
    learn = learner(data, cbs=KeepBest('valid_loss'))
    quiet(learn, HeadPhase().fit, learn)
    quiet(learn, lambda: upper(learn, lr=8.).fit(learn))
    assert learn.keep_best.weights is None and learn.keep_best.where is None
    quiet(learn, OneCyclePhase('all layers', 1, 0, 5., 5., only_after_head=True).fit, learn)
    assert learn.keep_best.where.startswith('all layers') and same(learn.keep_best.weights, state(learn))


def test_the_best_weights_of_the_last_phase_are_half_of_the_mean(data):
    "What `keep_best` found is not what the learner has afterwards, and the words say so"
    result = baseline(data, **SPOILED | dict(keep_best='valid_loss', checkpoint_every=None))
    last = result.chosen.split('; ')[-1]
    assert last.startswith('the mean of head and all layers (all layers, epoch ') and ', by valid_loss) rather than head' in last, result.chosen
    assert result.learn.keep_best.weights is None


def test_a_better_second_phase_is_the_last(data, monkeypatch):
    scores = iter([Scores(.1, 9., 9.), Scores(.9, 1., 1.)])
    monkeypatch.setattr(Scores, 'of', lambda learn, metric=None: next(scores))
    result = baseline(data, **TINY, size=32, n_steps=8, verbose=False)
    assert result.chosen.startswith('from blocks.2 rather than head') and list(result.phases.stage) == ['head', 'from blocks.2']
    assert 'all layers' not in set(result.epochs.phase)


@pytest.mark.parametrize('phase, at', [(UpperPhase, 3), (OneCyclePhase, 5)])
def test_a_run_of_three_phases_resumes_bit_for_bit(data, tmp_path, monkeypatch, rescued, phase, at):
    fit = phase.fit
    with monkeypatch.context() as m:
        m.setattr(phase, 'fit', lambda self, learn, checkpoint=None, cbs=None: fit(self, learn, checkpoint, cbs=Stop(at)))
        with pytest.raises(KeyboardInterrupt): baseline(data, **SPOILED, out=tmp_path/'out')
    plan = baseline(data, **SPOILED, out=tmp_path/'out', dry_run=True)
    file = 'checkpoint-2' if phase is OneCyclePhase else 'checkpoint'
    assert plan.resumed.startswith(f'from step {at} of') and plan.resumed.endswith(f'{file}.safetensors'), plan.resumed
    again = baseline(data, **SPOILED, out=tmp_path/'out')
    a, b = (load_file(o/'model'/'model.safetensors') for o in (rescued.out, tmp_path/'out'))
    assert same(a, b) and again.chosen == rescued.chosen and again.evaluation == rescued.evaluation
    assert not list((tmp_path/'out').glob('checkpoint*'))


def test_a_budget_tries_all_layers_only_in_time(data, monkeypatch):
    kept = []
    def worse(learn, metric=None):   # each later phase is worse than the head
        kept.append(learn)
        return Scores(.5, 1., float(len(kept)))
    monkeypatch.setattr(Scores, 'of', worse)
    monkeypatch.setattr('fastbit.training.upper.UPPER_STEPS', 20)
    result = baseline(data, **TINY, size=32, budget='10m', verbose=False)
    assert list(result.phases.stage)[2:] == ['all layers'] and result.chosen.count('head rather than') == 2
    monkeypatch.setattr('fastbit.baseline.run.phase_limit', lambda plan, deadline: TimeLimit(60. if not kept else 0.))
    kept.clear()
    result = baseline(data, **TINY, size=32, budget='10m', verbose=False)
    assert len(result.phases) == 2 and result.chosen.count('head rather than') == 1 and result.chosen.endswith('all layers not tried, for lack of time')
    assert 'with all layers' not in result.plan.short()


def test_bodies_without_batch_norm_train_all_layers_on_images(data):
    plan = baseline(data, 'test_efficientnet_gn', 'random', size=32, dry_run=True, verbose=False)
    assert [type(p) for p in plan.phases] == [HeadPhase, OneCyclePhase] and 'without BatchNorm' in plan.why
    assert plan.phases[1].keep_better and plan.phases[1].n_epoch == 7
    plan = baseline(data, 'test_efficientnet_gn', 'random', size=32, n_steps=8, dry_run=True, verbose=False)
    assert plan.phases[1].n_epoch == 8//1   # one batch a pass


def test_nothing_is_read_from_the_test_set(data, tmp_path):
    "Other pictures and other labels to test on: the same weights"
    table = image_table(data)
    table['split'] = ['train', 'valid', 'train', 'test']*(len(table)//4)
    other = table.copy()
    test = other.split == 'test'
    other.loc[test, 'label'] = other.loc[test, 'label'].sample(frac=1, random_state=1).to_numpy()
    other = other.drop(other.index[test][:3])
    for name, t in dict(a=table, b=other).items():
        baseline(t, **TINY, size=32, n_steps=8, out=tmp_path/name, verbose=False)
    a, b = (load_file(tmp_path/o/'model'/'model.safetensors') for o in 'ab')
    assert same(a, b)


def test_options_of_auto():
    for bad, words in ((dict(n_steps=0), 'n_steps=0'), (dict(lr=20.), 'lr=20'), (dict(views=0), 'views=0'), (dict(label_smoothing=1.), 'label_smoothing=1'),
                       (dict(epochs=3), 'epochs applies to the onecycle and head recipes only, not to auto. Set its length with n_steps'),
                       (dict(n_steps=9, budget='5m'), 'n_steps=9 and budget'), (dict(recipe='head', label_smoothing=.1), 'label_smoothing=0.1')):
        with pytest.raises(ValueError) as e: baseline(**TINY, **bad, verbose=False)
        assert words in str(e.value), e.value


def test_options_without_an_effect_are_said(data):
    few = dict(size=32, k_per_class=3, dry_run=True, verbose=False)
    with pytest.warns(UserWarning, match='auto trains the classifier alone here, so these options have no effect: lr=0.001, keep_best='):
        plan = baseline(data, **TINY, **few, lr=1e-3, keep_best='accuracy')
    assert len(plan.phases) == 1 and '3 images per class: the classifier alone' in plan.why
    with pytest.warns(UserWarning, match='all layers on images here, so these options have no effect: views=4'):
        baseline(data, 'test_efficientnet_gn', 'random', size=32, views=4, dry_run=True, verbose=False)
    with pytest.raises(ValueError, match="patience=2: logistic regression has no epochs"): baseline(data, **TINY, **few, recipe='head', patience=2)


def test_one_epoch_of_onecycle_is_the_head_and_says_what_it_ignores(data):
    with pytest.warns(UserWarning, match='with epochs=1, so these options have no effect: lr=0.3, label_smoothing=0.2'):
        plan = baseline(data, **TINY, size=32, recipe='onecycle', epochs=1, lr=.3, label_smoothing=.2, dry_run=True, verbose=False)
    assert len(plan.phases) == 1


def test_a_strength_for_many_images_is_chosen_on_some(monkeypatch):
    import fastbit.training.head as module
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = rng.normal(size=(300, 8)) + y[:, None]
    whole = logistic_head(x, y, 3)
    monkeypatch.setattr(module, 'CV_IMAGES', 100)
    some = logistic_head(x, y, 3)
    assert 'on 300 training images' in whole.how and 'on 100 training images' in some.how
    views = logistic_head(np.repeat(x, 2, 0), np.repeat(y, 2), 3, groups=np.repeat(np.arange(300), 2))
    assert 'on 100 training images' in views.how   # both views of an image, or none
    few = np.r_[np.zeros(298, int), [1, 1]]
    assert 'on 300 training images' in logistic_head(x, few, 2).how   # a class of two would not be in every part


def test_a_rate_means_the_same_with_a_budget(data):
    how = dict(size=32, lr=4e-4, dry_run=True, verbose=False)
    plans = [baseline(data, 'test_efficientnet_gn', 'random', **how, **more) for more in ({}, dict(budget='30m'))]
    assert plans[0].phases[1].lr == pytest.approx(plans[1].phases[1].lr) == pytest.approx(4e-4)


def test_the_best_weights_by_what_was_asked_for(data):
    for monitor in ('valid_loss', 'accuracy'):
        result = baseline(data, **TINY, size=32, n_steps=12, keep_best=monitor, verbose=False)
        if 'by ' + monitor in result.chosen: assert f'by {monitor}; from' in result.chosen or f'by {monitor}) rather' in result.chosen, result.chosen
        if monitor == 'valid_loss': assert 'by validation loss after calibration' in result.chosen


def test_what_cannot_be_trained_leaves_the_classifier_as_it_was(data):
    from fastai.callback.mixup import MixUp
    from fastai.vision.augment import Brightness, Resize
    from fastai.vision.data import ImageDataLoaders
    learn = learner(data)
    quiet(learn, learn.fit_head, solver='lbfgs')
    head = state(learn)
    for how, words in ((dict(cache_gb=0), 'cache_gb=0'), (dict(cbs=MixUp()), 'remove MixUp'), (dict(checkpoint_every=3), 'into which file'),
                       (dict(checkpoint='x.safetensors', checkpoint_every=0), 'checkpoint_every=0')):
        with pytest.raises(ValueError, match=words): quiet(learn, learn.fit_upper, FROM, 4, **how)
        assert same(head, state(learn))
    dls = image_dataloaders(data, TINY['arch'], size=32, bs=8, num_workers=0, device='cpu', batch_tfms=[Brightness()])
    other = transfer_learner(dls, **TINY)
    with pytest.warns(UserWarning, match='taken as validation sees them'): quiet(other, other.fit_upper, FROM, 4, views=1)
    theirs = ImageDataLoaders.from_folder(data, valid_pct=.2, item_tfms=Resize(32), num_workers=0, bs=8)
    other = transfer_learner(theirs, **TINY)
    with pytest.warns(UserWarning, match='taken as validation sees them'): quiet(other, other.fit_upper, FROM, 4)   # one view
    with pytest.raises(ValueError, match='Pass views=1'): quiet(other, other.fit_upper, FROM, 4, views=3)


# the head

def test_the_head_is_never_worse_than_guessing_on_noise():
    "Labels that say nothing about the features"
    rng = np.random.default_rng(0)
    for n, k in ((20, 2), (40, 4), (100, 10)):
        x, y = np.abs(rng.normal(size=(n, 300))), np.arange(n) % k
        fit = logistic_head(x, y, k)
        new = np.abs(rng.normal(size=(500, 300)))@fit.weight.T + fit.bias
        loss = torch.nn.functional.cross_entropy(torch.tensor(new), torch.tensor(np.arange(500) % k)).item()
        assert loss < np.log(k) + .25, (n, k, loss)


def test_a_channel_that_is_hardly_ever_active_does_not_weigh_as_much_as_the_others():
    "Why features are not fully standardized"
    from fastbit.training.head import FeatureScaler
    x = np.random.default_rng(0).normal(size=(50, 3))*[1., 1., .01]
    scaled = FeatureScaler().fit_transform(x)
    assert scaled.mean(0) == pytest.approx(0, abs=1e-12) and scaled[:, 2].std() < .2*scaled[:, 0].std()
    assert np.isfinite(FeatureScaler().fit_transform(np.ones((4, 2)))).all()
