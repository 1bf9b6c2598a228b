"Several labels per image: metrics are scikit-learn's, intervals cover, losses follow their formulas, splits are stratified"
import warnings

import numpy as np, pandas as pd, pytest, sklearn.metrics as skm, torch
import torch.nn.functional as F
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders
from fastai.imports import noop
from fastai.learner import Learner
from fastai.torch_core import TensorMultiCategory
from timm.loss import AsymmetricLossMultiLabel
from torch import nn
from torch.testing import assert_close

from fastbit.metrics import AsymmetricLoss, BinaryLoss, choose_thresholds, decode_labels, evaluate_labels, iterative_folds, iterative_parts
from fastbit.metrics.label_calibration import fit_label_temperature
from fastbit.metrics.losses import describe_loss
from fastbit.metrics.multilabel import LABEL_METRICS, label_statistics
from fastbit.metrics.label_noise import fit_label_noise, probs_right
from fastbit.studies import multilabel_issues
from fastbit.studies.detect import check_labels, judge_label_sets

DRAWS = 1000
LOW, HIGH = .95 - 3*(.95*.05/DRAWS)**.5, .95 + 3*(.95*.05/DRAWS)**.5   # what 1,000 draws allow


# Values

def by_scikit_learn(probs, targs, thresholds, weights=None) -> dict:
    "The same metrics; means over classes are over those with images"
    preds, w = probs >= thresholds, np.ones(len(targs)) if weights is None else weights
    seen = np.flatnonzero(w@targs > 0)
    how = dict(zero_division=0, sample_weight=w)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # about classes that are missing
        f1 = [skm.f1_score(t, p, **how) for t, p in zip(targs.T, preds.T)]
        ap = [skm.average_precision_score(t, p, sample_weight=w) for t, p in zip(targs.T, probs.T)]
    any_label = (w@(targs + preds)).sum() > 0
    micro = skm.f1_score(targs.ravel(), preds.ravel(), sample_weight=np.repeat(w, targs.shape[1]), zero_division=0) if any_label else np.nan
    mean = lambda values: np.mean([values[c] for c in seen]) if len(seen) else np.nan
    return dict(map=mean(ap), macro_f1=mean(f1), micro_f1=micro)


def cases():
    "Random sets with ties and without, and degenerate ones"
    rng = np.random.default_rng(0)
    for i in range(40):
        n, k = rng.integers(1, 40), rng.integers(1, 6)
        probs = rng.random((n, k))
        if i % 3 == 0: probs = np.round(4*probs)/4   # ties
        if i % 3 == 1: probs = probs.astype(np.float32)
        yield f'random {i}', probs, (rng.random((n, k)) < rng.random(k)*.6).astype(int)
    two = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    yield 'all tied', np.full((4, 2), .5), two
    yield 'perfect', two.astype(float), two
    yield 'always wrong', 1. - two, two
    yield 'no labels', np.full((4, 2), .1), np.zeros((4, 2), int)
    yield 'all labels', np.full((4, 2), .1), np.ones((4, 2), int)


@pytest.mark.parametrize('name, probs, targs', list(cases()), ids=[c[0] for c in cases()])
def test_metrics_are_scikit_learns_with_weights_and_without(name, probs, targs):
    n, rng = len(targs), np.random.default_rng(1)
    weights = np.stack([np.ones(n), *(np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(3))])
    found = label_statistics(probs, targs)(weights)
    for i, w in enumerate(weights):
        for k, v in by_scikit_learn(probs, targs, .5, w).items(): assert found[k][i] == pytest.approx(v, abs=1e-12, nan_ok=True), (k, i)
    ev = evaluate_labels(probs, targs)
    assert ev.exact_match == pytest.approx(skm.accuracy_score(targs, probs >= .5), abs=1e-12) if targs.shape[1] > 1 else True
    assert ev.loss == pytest.approx(np.mean([skm.log_loss(t, p, labels=[0, 1]) for t, p in zip(targs.T, probs.T)]), abs=1e-6)


def test_tensors_of_fastai_are_labels(capsys):
    probs = torch.rand(30, 3, generator=torch.manual_seed(0))
    targs = TensorMultiCategory((torch.rand(30, 3, generator=torch.manual_seed(1)) < .4).float())
    ev = evaluate_labels(probs, targs, thresholds=[.4, .5, .6])
    assert ev.loss == pytest.approx(F.binary_cross_entropy(probs, targs.as_subclass(torch.Tensor)).item(), abs=1e-6)
    assert ev.per_class.threshold.tolist() == [.4, .5, .6] and ev.per_class.positives.sum() == int(targs.sum())
    assert set(LABEL_METRICS) <= set(ev.as_dict()) and all(ev.score(k).interval for k in LABEL_METRICS)


def test_exclusive_labels_decode_as_one_label():
    "With one label per image and the threshold between the two best, exact match is accuracy"
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(5, .3), 400)
    labels = np.array([rng.choice(5, p=p) for p in probs])
    highest = np.sort(probs, 1)
    sure = highest[:, -1] > .5
    exact = (decode_labels(probs[sure]) == np.eye(5, dtype=bool)[labels[sure]]).all(1)
    assert (exact == (probs[sure].argmax(1) == labels[sure])).all()


# Thresholds

def calibrated(rng, n, centers=(-3, -2.5, -2, -1)):
    probs = 1/(1 + np.exp(-rng.normal(centers, 1.5, (n, len(centers)))))
    return probs, (rng.random(probs.shape) < probs).astype(int)


def test_a_chosen_threshold_has_the_highest_f1_there_is():
    rng, f1 = np.random.default_rng(0), lambda p, t: 2*(p & t).sum()/max(p.sum() + t.sum(), 1)
    for _ in range(50):
        probs, targs = calibrated(rng, 60)
        one, each = choose_thresholds(probs, targs), choose_thresholds(probs, targs, per_class=True)
        for chosen, p, t in ((one, probs, targs > 0), (each[0], probs[:, 0], targs[:, 0] > 0)):
            assert 0 <= chosen <= 1 and f1(p >= chosen, t) == pytest.approx(max(f1(p >= o, t) for o in np.unique(p)), abs=1e-12)


# Intervals

@pytest.mark.parametrize('grouped', [False, True])
def test_intervals_cover_the_truth(few_resamples, monkeypatch, grouped):
    "Labels from 8 to 30% of images; groups are easy or hard as a whole"
    monkeypatch.setattr('fastbit.metrics.multilabel.label_reliability', lambda *_: None)
    monkeypatch.setattr('fastbit.metrics.multilabel.calibration_error', lambda *_: 0.)   # has no interval
    rng = np.random.default_rng(0)
    probs, targs = calibrated(rng, 60_000)
    hard = np.abs(probs - targs).max(1) > .5
    easy_rows, hard_rows = np.flatnonzero(~hard), np.flatnonzero(hard)
    population = np.r_[rng.choice(easy_rows, 30_000), rng.choice(hard_rows, 20_000)] if grouped else np.arange(60_000)
    truth = evaluate_truth(probs[population], targs[population])
    covered = dict.fromkeys(truth, 0)
    for _ in range(DRAWS):
        if grouped:
            rows = np.concatenate([rng.choice(easy_rows if rng.random() < .6 else hard_rows, 5) for _ in range(50)])
            groups = np.repeat(np.arange(50), 5)
        else: rows, groups = rng.integers(0, len(targs), 200), None
        ev = evaluate_labels(probs[rows], targs[rows], groups)
        for k, v in truth.items(): covered[k] += ev.score(k).interval.low <= v <= ev.score(k).interval.high
    for k, v in covered.items(): assert (.9 if k == 'map' else LOW - .015) <= v/DRAWS <= HIGH + .01, covered


def evaluate_truth(probs, targs) -> dict:
    values = {k: v[0] for k, v in label_statistics(probs, targs)(np.ones((1, len(targs)))).items()}
    right = ((probs >= .5) == targs).all(1).mean()
    loss = -np.where(targs, np.log(probs), np.log1p(-probs)).mean()
    return dict(map=values['map'], macro_f1=values['macro_f1'], micro_f1=values['micro_f1'], exact_match=right, loss=loss)


# Losses

LOGITS = torch.randn(6, 3, generator=torch.manual_seed(0))
LABELS = (torch.rand(6, 3, generator=torch.manual_seed(1)) < .4).float()
WEIGHTS = dict(weight=[1., 2., .5], pos_weight=[3., 1., 1.])


@pytest.mark.parametrize('gammas', [(4, 0), (4, 1), (0, 0), (2.5, .5)])
@pytest.mark.parametrize('clip', [0, .05, .2])
@pytest.mark.parametrize('weights', [{}, WEIGHTS], ids=['plain', 'weighted'])
def test_the_asymmetric_loss_is_timms_and_the_formula(gammas, clip, weights):
    neg, pos = gammas
    tensors = {k: torch.tensor(v) for k, v in weights.items()}
    ours = AsymmetricLoss(neg, pos, clip, **weights, reduction='none')(LOGITS, LABELS)
    p, y = LOGITS.double().sigmoid(), LABELS.double()
    q = (p - clip).clamp(min=0)
    formula = -(y*(1-p)**pos*p.log()*tensors.get('pos_weight', 1) + (1-y)*q**neg*(1-q).log())*tensors.get('weight', 1)
    assert_close(ours.double(), formula, atol=1e-6, rtol=1e-5)
    theirs = AsymmetricLossMultiLabel(neg, pos, clip)
    if not weights: assert_close(ours.sum(), theirs(LOGITS, LABELS)*(len(LOGITS) if getattr(theirs, 'reduction', 'sum') == 'batchmean' else 1))


@pytest.mark.parametrize('weights', [{}, WEIGHTS], ids=['plain', 'weighted'])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_without_focus_it_is_torchs_binary_cross_entropy(weights, reduction):
    tensors = {k: torch.tensor(v) for k, v in weights.items()}
    theirs = F.binary_cross_entropy_with_logits(LOGITS, LABELS, **tensors, reduction=reduction)
    assert_close(BinaryLoss(**weights, reduction=reduction)(LOGITS, LABELS), theirs)
    assert_close(AsymmetricLoss(0, 0, 0, **weights, reduction=reduction)(LOGITS, LABELS), theirs)
    assert_close(BinaryLoss(**weights, reduction=reduction)(LOGITS, TensorMultiCategory(LABELS)), theirs)


def test_losses_are_described_with_their_numbers():
    made = [BinaryLoss(), BinaryLoss(weight=[1, 2.]), AsymmetricLoss(), AsymmetricLoss(gamma_neg=2), AsymmetricLoss(clip=0), AsymmetricLoss(pos_weight=[1, 2.])]
    assert len({describe_loss(o) for o in made}) == len(made)


@pytest.mark.parametrize('loss', [BinaryLoss(), AsymmetricLoss()], ids=['binary', 'asymmetric'])
def test_fastai_trains_with_it_and_mixes_labels(loss):
    x = torch.randn(64, 5, generator=torch.manual_seed(0))
    items = list(zip(x, (x[:, :3] > 0).float()))
    dls = DataLoaders.from_dsets(items, items, bs=16, device='cpu')
    learn = Learner(dls, nn.Linear(5, 3), loss_func=loss, lr=.1, cbs=[MixUp()])
    learn.logger = noop
    with learn.no_bar(): learn.fit(8)
    probs, targs, losses = learn.get_preds(with_loss=True)
    assert losses.shape == (64,) and 0 <= probs.min() and probs.max() <= 1
    assert evaluate_labels(probs, targs).map > .9


# Splits

@pytest.mark.parametrize('grouped', [False, True])
def test_folds_are_more_even_than_at_random(grouped):
    rng, ours, random = np.random.default_rng(0), [], []
    for seed in range(20):
        targets = (rng.random((240, 10)) < rng.uniform(.03, .4, 10)).astype(int)
        groups = rng.integers(0, 60, 240) if grouped else np.arange(240)
        folds = iterative_folds(targets, 5, seed, groups if grouped else None)
        dealt = rng.permutation(np.arange(groups.max()+1) % 5)[groups]
        for found, of in ((ours, folds), (random, dealt)):
            counts = np.stack([targets[of == k].sum(0) for k in range(5)])
            found.append(np.abs(counts - targets.sum(0)/5).mean())
            assert not grouped or all(len(set(of[groups == g])) == 1 for g in set(groups))
    assert np.mean(ours) < (.75 if grouped else .25)*np.mean(random), (np.mean(ours), np.mean(random))


def test_a_rare_label_is_in_as_many_folds_as_it_has_images():
    targets = np.zeros((100, 3), int)
    targets[:5, 0] = targets[3:50, 1] = targets[40:90, 2] = 1
    folds = iterative_folds(targets, 5)
    assert sorted(folds[:5].tolist()) == [0, 1, 2, 3, 4] and np.bincount(folds).tolist() == [20]*5


def test_parts_have_their_shares_and_the_seed_decides():
    targets = (np.random.default_rng(0).random((500, 6)) < .2).astype(int)
    part = iterative_parts(targets, [.7, .2, .1], seed=3)
    assert np.abs(np.bincount(part) - [350, 100, 50]).max() <= 3
    assert (part == iterative_parts(targets, [.7, .2, .1], seed=3)).all() and (part != iterative_parts(targets, [.7, .2, .1], seed=4)).any()


def test_twenty_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    targets = (rng.random((20_000, 30)) < .1).astype(np.int8)
    folds = iterative_folds(targets, 5)
    assert np.abs(np.bincount(folds) - 4000).max() <= 5


# Calibration

def test_a_temperature_of_labels_is_found_and_few_images_gain_by_the_prior():
    "300 draws of 12 images: the loss of others falls where logits are 2.5 times too large, and the prior limits the harm where they are right"
    rng = np.random.default_rng(0)
    def drawn(n):
        z = rng.normal(-1, 2, (n, 4)) + rng.normal(0, 1, (n, 1))   # labels of an image go together
        return torch.from_numpy(z), torch.from_numpy((rng.random(z.shape) < 1/(1 + np.exp(-z))).astype(float))
    z, y = drawn(5000)
    loss = lambda t: F.binary_cross_entropy_with_logits(2.5*z/t, y).item()
    assert fit_label_temperature(2.5*z, y) == pytest.approx(2.5, rel=.05)
    few = [drawn(12) for _ in range(300)]
    assert np.mean([loss(fit_label_temperature(2.5*a, b)) for a, b in few]) < loss(1) - .1
    needless = lambda t: F.binary_cross_entropy_with_logits(z/t, y).item()   # these logits are calibrated
    fitted, free = ([needless(fit_label_temperature(a, b, prior)) for a, b in few] for prior in (4., 1e-6))
    assert np.mean(fitted) < np.mean(free) and np.quantile(fitted, .95) < np.quantile(free, .95) - .02


def test_the_calibration_error_is_the_distance_in_bins():
    rng = np.random.default_rng(0)
    probs, targs = rng.random((300, 4)), (rng.random((300, 4)) < .3).astype(int)
    bin_of = np.ceil(probs*15).astype(int)
    by_hand = sum(abs(probs[bin_of == b].mean() - targs[bin_of == b].mean())*(bin_of == b).mean() for b in np.unique(bin_of))
    assert evaluate_labels(probs, targs).ece == pytest.approx(by_hand)


# Label errors

def _features(rng, n=150):
    targets = rng.random((n, 3)) < .4
    return (3*targets[:, [0, 1, 2]*60] + rng.normal(0, .7, (n, 180))).astype(np.float32), targets.astype(int)   # as many as bodies have


def test_labels_that_contradict_the_features_are_found():
    features, targets = _features(np.random.default_rng(0))
    wrong = {(3, 0), (14, 1), (50, 2), (77, 0), (90, 1)}
    for row, label in wrong: targets[row, label] ^= 1
    found = multilabel_issues(features, targets)
    assert len(wrong & set(zip(found.row, found.label))) >= 4 and len(found) <= len(wrong)
    assert (found.given == [bool(targets[r, c]) for r, c in zip(found.row, found.label)]).all() and found.score.is_monotonic_increasing
    assert found.score.iloc[0] < .5


def test_a_wrong_copy_does_not_vouch_for_itself():
    features, targets = _features(np.random.default_rng(1))
    features[1:6], targets[1:6] = features[0], targets[0]
    targets[:6, 0] ^= 1
    found = multilabel_issues(features, targets, groups=[0]*6 + list(range(1, 145)))
    assert {(r, 0) for r in range(6)} <= set(zip(found.row, found.label))


def test_classes_with_hardly_any_images_are_not_judged():
    features, targets = _features(np.random.default_rng(2))
    targets[:, 1] = 0
    targets[:4, 1] = 1
    assert not (multilabel_issues(features, targets).label == 1).any()
    assert multilabel_issues(features[:4], targets[:4]).empty and multilabel_issues(features, np.ones((150, 2), int)).empty


def _weak_features(rng, strength, n=400, d=60):
    targets = (rng.random((n, 4)) < [.5, .3, .2, .4]).astype(int)
    return (strength*(targets@rng.normal(0, 1, (4, d)))/d**.5 + rng.normal(0, 1, (n, d))).astype(np.float32), targets


@pytest.mark.parametrize('strength, least', [(1, 0), (5, .25), (12, .7)])
def test_flags_are_right_more_often_than_not_and_few_without_errors(strength, least):
    "Two draws with a twentieth of the labels turned, by features of each strength; weak ones flag next to nothing"
    caught, flagged, turned, expected = 0, 0, 0, []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        features, truth = _weak_features(rng, strength)
        assert len(multilabel_issues(features, truth)) <= .01*truth.size
        flipped = rng.random(truth.shape) < .05
        judged = judge_label_sets(features, truth ^ flipped)
        found = judged.right < .5
        caught, flagged, turned = caught + (found & flipped).sum(), flagged + found.sum(), turned + flipped.sum()
        expected.append(judged.noticed)
    assert flagged <= .01*2*truth.size or caught/flagged > .5
    assert caught/turned >= least and abs(caught/turned - np.mean(expected)) < .2


def test_a_few_dimensions_are_enough():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 2)) < .4).astype(int)
    features = (3*targets + rng.normal(0, .5, (200, 2))).astype(np.float32)
    wrong = {(5, 0), (50, 1), (90, 0), (150, 1)}
    for row, label in wrong: targets[row, label] ^= 1
    found = multilabel_issues(features, targets)
    assert wrong == set(zip(found.row, found.label))


def test_shares_of_wrong_labels_are_estimated_and_probabilities_hold():
    "50 draws of logits: as many flags are right as their probabilities say, and clean data have next to none"
    rng, right, said, clean, shares = np.random.default_rng(0), [], [], 0, []
    for _ in range(50):
        z = rng.normal(-1, 3, (400, 5))
        true = rng.random(z.shape) < 1/(1 + np.exp(-z))
        given = np.where(true, rng.random(z.shape) > .1, rng.random(z.shape) < .03)   # missing, extra
        noise = fit_label_noise(2*z, given)
        probs = probs_right(noise, 2*z, given)
        right += (given == true)[probs < .5].tolist()
        said += probs[probs < .5].tolist()
        shares.append((noise.missing, noise.extra))
        clean += (probs_right(fit_label_noise(z, true), z, true) < .5).sum()
    assert abs(np.mean(right) - np.mean(said)) < .05 and np.mean(right) < .35
    assert np.abs(np.mean(shares, 0) - [.1, .03]).max() < .015 and clean < .01*50*2000


def test_labels_that_the_features_do_not_tell_apart_are_not_judged():
    rng = np.random.default_rng(0)
    labels = [tuple(o for o in 'ab' if rng.random() < .4) for _ in range(100)]
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(100)], label=pd.Series(labels, dtype=object), split=''))
    found = check_labels(table, rng.normal(0, 1, (100, 20)), [])
    assert not found.issues and 'too weakly' in found.unchecked
    assert check_labels(table[:4], np.zeros((4, 2)), []).unchecked == 'too few images per class'
