"Classes of different sizes count alike: by weights in the loss, or by draws; exact in every way to train"
import json
from functools import partial
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.testing import assert_close

from fastbit.baseline import baseline
from fastbit.baseline.run import imbalance_words
from fastbit.bodies.preprocess import body_preprocess
from fastbit.cli.command import main
from fastbit.config import DataOptions
from fastbit.data import class_weights, image_dataloaders, image_table, step_rows, stream_dataloaders, table_dataloaders
from fastbit.data.balance import BalancedDraw
from fastbit.data.shared import rank_loader
from fastbit.data.steps import step_loader
from fastbit.data.streams import ImageStream
from fastbit.metrics.task import SINGLE_LABEL
from fastbit.studies.detect import KINDS
from fastbit.training import logistic_head, rule_differences, transfer_learner
from fastbit.training.head import FeatureScaler
from conftest import TINY, write_folder

HOWS = ('loss', 'batches')


@pytest.fixture(scope='module')
def data(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('balance')/'data', dict(blue=30, green=10, red=6))


def loaders(data, balance, bs=8, num_workers=0, **kwargs):
    return image_dataloaders(data, TINY['arch'], size=32, bs=bs, num_workers=num_workers, device='cpu', balance=balance, **kwargs)


def learner(data, balance, bs=8, loss_func=None, **kwargs):
    torch.manual_seed(0)
    learn = transfer_learner(loaders(data, balance, bs, **kwargs), **TINY, loss_func=loss_func)
    return learn


def quiet(learn, f, *args, **kwargs):
    with learn.no_logging(): f(*args, **kwargs)
    return learn


def labels(dl) -> np.ndarray: return np.array([int(dl.dataset.tls[1][i]) for i in range(dl.n)])


class FirstLoss(Callback):
    "Loss and labels of the first training step"
    seen = None
    def after_batch(self):
        if self.training and self.seen is None: self.seen = self.learn.loss.item(), self.y.numpy()


# --- weights

def test_the_learners_weights_are_scikit_learns(data):
    learn = learner(data, 'loss')
    y = labels(learn.dls.train)
    assert learn.dls.class_counts.tolist() == np.bincount(y).tolist() == [24, 8, 5]
    np.testing.assert_allclose(learn.class_weights, compute_class_weight('balanced', classes=np.arange(3), y=y), rtol=1e-12)
    assert learner(data, 'none').class_weights is learner(data, 'batches').class_weights is None


def test_logistic_regression_minimizes_scikit_learns_weighted_loss():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [40, 12, 6])
    x = rng.normal(size=(58, 4)) + y[:, None]
    ours = logistic_head(x, y, 3, weights=class_weights(np.bincount(y)))
    theirs = make_pipeline(FeatureScaler(), LogisticRegression(C=ours.C, max_iter=1000, class_weight='balanced')).fit(x, y)
    probs = torch.from_numpy(x@ours.weight.T + ours.bias).softmax(1).numpy()
    np.testing.assert_allclose(probs, theirs.predict_proba(x), atol=1e-6)


def test_the_head_has_the_same_weights_either_way(data):
    "Logistic regression has no batches to draw"
    by_hand = CrossEntropyLossFlat(weight=torch.tensor(class_weights([24, 8, 5])))
    learns = [learner(data, how, loss_func=loss) for how, loss in (('loss', None), ('batches', None), ('none', by_hand), ('none', None))]
    a, b, c, plain = [quiet(o, o.fit_head, solver='lbfgs').model.net.classifier.weight for o in learns]
    assert torch.equal(a, b) and not torch.equal(a, plain)
    assert_close(a, c, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('smoothing, mixup', [(0., 0.), (.2, 0.), (.1, .4)])
def test_the_upper_stages_train_on_the_weighted_loss_and_validate_on_the_plain_one(data, smoothing, mixup):
    "A head of zeros has a loss of log 3 for every image, so the first loss is that times the mean weight of the batch"
    learn, first = learner(data, 'loss'), FirstLoss()
    quiet(learn, learn.fit_upper, 3, 8, label_smoothing=smoothing, mixup=mixup, cbs=first)
    loss, y = first.seen
    assert loss == pytest.approx(np.log(3)*learn.class_weights[y].mean(), rel=1e-5)
    assert learn.history.rows[-1]['valid_loss'] == pytest.approx(learn.validate()[0], rel=1e-4)
    assert type(learn.loss_func) is CrossEntropyLossFlat and learn.loss_func.func.label_smoothing == 0


def test_fastais_mixup_mixes_two_weighted_losses(data):
    class Wanted(FirstLoss):
        def after_batch(self):
            if not self.training or self.seen is not None: return
            w, mix = torch.tensor(self.learn.class_weights), self.learn.mix_up
            mean = (mix.lam*w[self.y] + (1-mix.lam)*w[mix.yb1[0]]).mean()
            self.seen = self.learn.loss.item(), np.log(3)*mean.item()
    learn, wanted = learner(data, 'loss'), Wanted()
    quiet(learn, learn.fit, 1, 1e-3, cbs=[MixUp(), wanted])
    assert wanted.seen[0] == pytest.approx(wanted.seen[1], rel=1e-5) and type(learn.loss_func) is CrossEntropyLossFlat


# --- whole batches from pieces

def test_pieces_of_a_batch_give_the_weighted_gradient_of_the_whole(data):
    "37 images in batches of 8: four, and a last one of 5; in pieces of 3. SGD, since Adam divides by what may be tiny"
    whole, pieces = learner(data, 'loss'), learner(data, 'loss')
    for learn in (whole, pieces):
        learn.opt_func = partial(SGD, mom=.9)
        learn.unfreeze()
    quiet(whole, whole.fit, 1, 1e-3)
    pieces.micro_batch = 3
    pieces.dls.loaders[0] = rank_loader(pieces.dls.train)   # of one process
    quiet(pieces, pieces.fit, 1, 1e-3)
    assert whole.history.steps.loss.tolist() == pytest.approx(pieces.history.steps.loss.tolist(), rel=1e-5)
    for a, b in zip(whole.model.parameters(), pieces.model.parameters()): assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('balance', HOWS)
def test_the_rule_from_micro_batches(data, balance):
    first, rule = FirstLoss(), dict(batch_size=13, n_steps=3, base_lr=.3, mixup=.4, eval_every=3, show=False)
    whole, pieces = learner(data, balance, bs=13), learner(data, balance, bs=4)
    quiet(whole, whole.fit_hyperrule, **rule, cbs=first)
    quiet(pieces, pieces.fit_hyperrule, **rule)
    for a, b in zip(whole.model.parameters(), pieces.model.parameters()): assert_close(a, b, rtol=1e-3, atol=1e-5)
    y = labels(whole.dls.train)[step_rows(0, 37, 13, 0, whole.dls.train.balanced)]
    weights = np.ones(3) if balance == 'batches' else whole.class_weights
    assert first.seen[0] == pytest.approx(np.log(3)*weights[y].mean(), rel=1e-4)   # partners are of the same batch
    said = rule_differences(whole, whole.hyperrule(13))
    assert any(dict(loss='class weights 0.51 to 2.5 in the loss', batches='drawn equally often')[balance] in o for o in said)


# --- draws

def test_balanced_batches_depend_on_the_seed_and_the_epoch(data):
    "Not on workers or on the state of any global generator; repeats of an image are augmented again"
    def epochs(num_workers, seed=0):
        torch.manual_seed(num_workers)
        dl = loaders(data, 'batches', num_workers=num_workers, seed=seed).train
        return [list(dl) for _ in range(2)]
    one, two = epochs(0), epochs(2)
    for a, b in zip(one, two):
        assert len(a) == len(b) == 5
        assert all(torch.equal(x, x2) and torch.equal(y, y2) for (x, y), (x2, y2) in zip(a, b, strict=True))
        assert sorted(torch.cat([y for _, y in a]).bincount().tolist()) == [12, 12, 13]
    assert not torch.equal(one[0][0][0], one[1][0][0])
    pixels = torch.cat([x for x, y in one[0]]).flatten(1)
    of_red = pixels[torch.cat([y for _, y in one[0]]) == 2]
    assert len(of_red) >= 12 and len(of_red.unique(dim=0)) > 5   # of five images


def test_a_balanced_loader_is_asked_for_every_image_once(data):
    "By fastai's `get_preds`, which orders the predictions of what a loader would draw"
    learn = learner(data, 'batches')
    plain = learn.get_preds(ds_idx=0)
    list(learn.dls.train)
    for again in (learn.get_preds(dl=learn.dls.train), learn.get_preds(dl=learn.dls.train.new(bs=5))):
        assert again[1].tolist() == plain[1].tolist() == labels(learn.dls.train).tolist()
    assert learn.dls.valid.balanced is None and learn.dls.test_dl(list(learn.dls.valid.items)).balanced is None


def test_steps_are_balanced_passes_with_any_workers():
    draw = BalancedDraw(np.repeat([0, 1], [20, 4]))
    steps = np.concatenate([step_rows(s, 24, 7, 3, draw) for s in range(24)])   # seven passes
    assert all(np.bincount(steps[lo:lo+24] >= 20).tolist() == [12, 12] for lo in range(0, len(steps), 24))
    few = step_rows(2, 24, 100, 3, draw)
    assert np.bincount(few >= 20).tolist() == [50, 50] and (few == step_rows(2, 24, 100, 3, draw)).all()


def test_steps_with_workers_are_the_same(data):
    def steps(num_workers, first=0):
        dl = step_loader(loaders(data, 'batches', num_workers=num_workers).train, 13, 4, first, 4)
        return [[piece for piece, *_ in step.micro_batches(4, lambda t: t)] for step in dl]
    one, two = steps(0), steps(2, first=2)
    for a, b in zip(one[2:], two, strict=True): assert all(torch.equal(x, x2) for (x, _), (x2, _) in zip(a, b, strict=True))


def test_the_head_by_one_cycle_draws_balanced_batches(data):
    class Labels(Callback):
        seen = ()
        def after_batch(self):
            if self.training: self.seen = (*self.seen, *self.y.tolist())
    learn, drawn = learner(data, 'batches'), Labels()
    quiet(learn, learn.fit_head, 2, cbs=drawn)
    for lo in (0, 37): assert sorted(np.bincount(drawn.seen[lo:lo+37])) == [12, 12, 13]


# --- what cannot be

def test_other_words_are_refused(data, monkeypatch, capsys):
    for wrong in ('weight', None, 3, True, 'Loss', ['loss']):
        with pytest.raises(ValueError, match='choose from none, loss, batches'): DataOptions(balance=wrong)
    monkeypatch.chdir(data.parent)
    assert main(['baseline', str(data), '--balance', 'weight']) == 2
    assert '--balance weight: choose from none, loss, batches.' in capsys.readouterr().err
    with pytest.raises(SystemExit): main(['rule', str(data), '--balance', 'loss'])
    assert 'unknown option --balance' in capsys.readouterr().err


def test_weights_twice_are_refused_before_the_body_is_built(data):
    for loss, words in ((nn.CrossEntropyLoss(weight=torch.ones(3)), 'has class weights already'), (nn.CrossEntropyLoss(ignore_index=1), 'ignores class 1')):
        with pytest.raises(ValueError, match=f"{words}.*balance='none'"): transfer_learner(loaders(data, 'loss'), **TINY, loss_func=loss)
    learn = learner(data, 'loss')
    learn.loss_func = nn.CrossEntropyLoss(weight=torch.ones(3))
    for fit in (lambda: learn.fit(1), lambda: learn.fit_hyperrule(n_steps=1, show=False)):
        with pytest.raises(ValueError, match='has class weights already|weights its classes'): fit()
    with pytest.raises(ValueError, match='one weight per class'): learn.class_weights = [1., 2.]


def test_a_class_without_training_images(data):
    "It has no weight, and is not drawn; loaders of a folder drop it with a warning"
    table = image_table(data)
    table['split'] = np.where(table.label == 'red', 'valid', np.where(np.arange(len(table)) % 5, 'train', 'valid'))
    pp = body_preprocess(TINY['arch'], 32)
    for how in HOWS:
        torch.manual_seed(0)
        dls = table_dataloaders(table, pp, bs=8, num_workers=0, balance=how)
        learn = transfer_learner(dls, **TINY)
        quiet(learn, learn.fit, 1, 1e-3)
        drawn = torch.cat([y for _, y in dls.train]).bincount(minlength=3)
        if how == 'batches': assert drawn[2] == 0 and abs(drawn[0] - drawn[1]) <= 1
        else: assert learn.class_weights[2] == 0 and learn.class_weights[1] > learn.class_weights[0]
    with pytest.warns(UserWarning, match='no training images'): assert len(loaders(table, 'batches').vocab) == 2


def test_streams_name_what_they_can_have(data):
    items = [(f.read_bytes(), f.parent.name) for f in sorted(data.rglob('*.png'))]
    stream = ImageStream(lambda *where: iter(items), len(items), 'a list')
    make = lambda **how: stream_dataloaders(stream, stream, ['blue', 'green', 'red'], TINY['arch'], size=32, bs=4, **how)
    with pytest.raises(ValueError, match=r'learn.class_weights = class_weights\(counts\)'): make(balance='loss')
    learn, first = transfer_learner(make(), **TINY), FirstLoss()
    learn.class_weights = class_weights([30, 10, 6])   # the remedy
    quiet(learn, learn.fit_hyperrule, 8, n_steps=2, mixup=0., eval_every=2, show=False, cbs=first)
    assert first.seen[0] == pytest.approx(np.log(3)*learn.class_weights[0], rel=1e-4)   # the first eight are of one class


def test_a_set_that_is_not_balanced_is_told_the_option(data):
    counts = SimpleNamespace(class_counts=np.array([110, 40, 10]), vocab=['blue', 'green', 'red'], task=SINGLE_LABEL)
    words = imbalance_words(counts, DataOptions())
    assert 'blue has 110 training images, 11 times as many as red (10)' in words and "balance='loss'" in words
    assert imbalance_words(counts, DataOptions(balance='none')) == ''   # the user has chosen
    counts.class_counts = np.array([100, 40, 10])
    assert imbalance_words(counts, DataOptions()) == ''
    assert '--balance loss' in KINDS['imbalance'].advice and '--balance loss' in KINDS['imbalance'].hint


# --- from end to end

def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ['--arch', TINY['arch'], '--weights', 'random', '--size', '32', '--workers', '0', '--device', 'cpu']
    assert main(['baseline', str(data), *words, '--steps', '8', '--balance', 'loss', '--out', 'out']) == 0
    said = capsys.readouterr().out
    assert 'class weights 0.51 to 2.5 in the loss' in said and 'equally common' in said
    results = json.loads((tmp_path/'out'/'results.json').read_text())
    assert results['settings']['balance'] == 'loss' and results['plan']['balance'].startswith('class weights')
    page = (tmp_path/'out'/'report.html').read_text()
    assert 'Training made all classes count alike' in page and 'shift_prior' in page
    weights = pd.read_csv(tmp_path/'out'/'history.csv')
    assert {'head', 'from blocks.2'} <= set(weights.phase)
    image = str(next(data.rglob('*.png')))
    assert main(['predict', 'out', image]) == 0 and 'note: probabilities for classes that are equally common' in capsys.readouterr().err
    labeled = write_folder(tmp_path/'labeled', dict(blue=2, green=2, red=2))
    assert main(['evaluate', 'out', str(labeled)]) == 0 and 'equally common' in capsys.readouterr().out
    config = tmp_path/'out'/'model'/'config.json'
    config.write_text(config.read_text().replace('"balance": "loss"', '"balance": "lose"'))
    assert main(['predict', 'out', image]) == 2 and "balance 'lose'; it must be one of none, loss, batches" in capsys.readouterr().err


def test_the_plan_says_what_is_drawn(data):
    few = dict(TINY, size=32, num_workers=0, verbose=False, dry_run=True, balance='batches')
    plan = lambda recipe, **how: baseline(data, recipe=recipe, **few, **how).balance
    assert plan('onecycle') == 'balanced batches: 5 to 24 images per class, drawn equally often; head: class weights 0.51 to 2.5'
    assert plan('head') == 'class weights 0.51 to 2.5; logistic regression has no batches'
    assert plan('head', epochs=2) == 'balanced batches: 5 to 24 images per class, drawn equally often'
    assert 'drawn equally often; the authors draw' in str(baseline(data, recipe='hyperrule', **few, n_steps=2, batch_size=8))
