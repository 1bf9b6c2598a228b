"A number per image: metrics are scikit-learn's and scipy's, intervals cover, and prediction intervals hold what they promise"
import warnings

import numpy as np, pytest, scipy.stats as st, sklearn.metrics as skm, torch
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback   # gives a Learner `no_bar`
from fastai.data.core import DataLoaders
from fastai.imports import noop
from fastai.learner import Learner
from torch import nn

from fastbit.metrics import NumberLoss, NumberScale, conformal_interval, coverage_range, evaluate_numbers
from fastbit.metrics.numbers import NUMBER_METRICS, number_statistics
from fastbit.metrics.quantity import number_task

DRAWS = 1000
LOW, HIGH = .95 - 3*(.95*.05/DRAWS)**.5, .95 + 3*(.95*.05/DRAWS)**.5   # what 1,000 draws allow


# Values

def by_others(pred, targs) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # about constant input and single rows
        constant = targs.min() == targs.max()
        return dict(mae=skm.mean_absolute_error(targs, pred), rmse=skm.root_mean_squared_error(targs, pred),
                    r2=np.nan if constant else skm.r2_score(targs, pred), spearman=st.spearmanr(targs, pred).statistic if len(pred) > 1 else np.nan)


def cases():
    "Random numbers, with ties and without, large ones, and degenerate ones"
    rng = np.random.default_rng(0)
    for i in range(40):
        n = rng.integers(2, 40)
        targs = rng.gamma(2, 10, n)
        pred = targs + rng.normal(0, 10, n)
        if i % 3 == 0: pred, targs = np.round(pred/10), np.round(targs/10)   # ties
        if i % 3 == 1: pred, targs = pred.astype(np.float32), targs.astype(np.float32)
        yield f'random {i}', pred, targs
    yield 'years', 2000 + rng.normal(0, 1, 30), 2000 + rng.normal(0, 1, 30)
    yield 'tiny', 1e-9*rng.random(30), 1e-9*rng.random(30)
    yield 'constant prediction', np.full(5, 3.), np.arange(5.)
    yield 'constant target', np.arange(5.), np.full(5, .1)
    yield 'perfect', np.arange(5.), np.arange(5.)
    yield 'reversed', np.arange(5.), np.arange(5.)[::-1].copy()
    yield 'one image', np.array([1.]), np.array([2.])


@pytest.mark.parametrize('name, pred, targs', list(cases()), ids=[c[0] for c in cases()])
def test_metrics_are_those_of_others_with_weights_and_without(name, pred, targs):
    n, rng = len(targs), np.random.default_rng(1)
    weights = np.stack([np.ones(n, int), *(np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(4))])
    found = number_statistics(pred, targs)(weights)
    for i, w in enumerate(weights):
        theirs = by_others(np.repeat(pred.astype(float), w), np.repeat(targs.astype(float), w))   # theirs are in float32 otherwise
        for k, v in theirs.items(): assert found[k][i] == pytest.approx(v, rel=1e-6, abs=1e-9 if name != 'tiny' else 0, nan_ok=True), (k, i)


@pytest.mark.parametrize('first', [0, 1])
def test_quadratic_kappa_of_grades(first):
    rng = np.random.default_rng(0)
    targs = rng.integers(first, first+5, 200)
    pred = targs + rng.normal(0, 1, 200)
    rounded = np.rint(pred).astype(int)   # a grade that no image has is as wrong as it is far
    ev = evaluate_numbers(pred, targs)
    assert ev.quadratic_kappa == pytest.approx(skm.cohen_kappa_score(targs, rounded, weights='quadratic'), abs=1e-12)
    assert ev.quadratic_kappa_interval.low < ev.quadratic_kappa < ev.quadratic_kappa_interval.high


def test_counts_and_measurements_are_no_grades():
    rng = np.random.default_rng(0)
    for targs in (rng.normal(0, 1, 50), rng.integers(0, 300, 50), rng.integers(-3, 3, 50), np.full(50, 2)):
        assert evaluate_numbers(rng.normal(0, 1, 50), targs).quadratic_kappa is None


# Intervals

def population(noise, n=200_000):
    "Skewed numbers, and errors with a few large ones"
    rng = np.random.default_rng(1)
    targs = rng.gamma(4, 5, n)
    return targs + noise*rng.standard_t(6, n), targs


@pytest.mark.parametrize('n, noise', [(40, 4), (120, 4), (120, 1.5), (300, 12)])
def test_intervals_cover_the_truth(few_resamples, n, noise):
    pred, targs = population(noise)
    truth = {k: v[0] for k, v in number_statistics(pred, targs)(np.ones((1, len(targs)))).items()}
    rng, covered = np.random.default_rng(2), dict.fromkeys(truth, 0)
    for _ in range(DRAWS):
        rows = rng.integers(0, len(targs), n)
        ev = evaluate_numbers(pred[rows], targs[rows])
        for k, v in truth.items(): covered[k] += ev.score(k).interval.low <= v <= ev.score(k).interval.high
    for k, v in covered.items(): assert (.88 if k == 'rmse' and n == 40 else LOW - .015) <= v/DRAWS <= HIGH + .01, covered


def test_intervals_of_groups_cover_the_truth_and_plain_ones_do_not(few_resamples):
    "Patients differ in their number, and in how far the model is off"
    rng, n_groups, each = np.random.default_rng(3), 30, 6
    def draw(n_groups):
        groups = np.repeat(np.arange(n_groups), each)
        targs = rng.normal(50, 10, n_groups)[groups] + rng.normal(0, 3, len(groups))
        return targs + rng.normal(0, 4, n_groups)[groups] + rng.normal(0, 2, len(groups)), targs, groups
    pred, targs, _ = draw(40_000)
    truth = {k: v[0] for k, v in number_statistics(pred, targs)(np.ones((1, len(targs)))).items()}
    covered = {(k, g): 0 for k in truth for g in (True, False)}
    for _ in range(DRAWS):
        pred, targs, groups = draw(n_groups)
        for grouped in (True, False):
            ev = evaluate_numbers(pred, targs, groups if grouped else None)
            for k, v in truth.items(): covered[k, grouped] += ev.score(k).interval.low <= v <= ev.score(k).interval.high
    for (k, grouped), v in covered.items():
        if grouped: assert LOW - .015 <= v/DRAWS <= HIGH + .01, covered
        else: assert v/DRAWS < .85, covered


def test_the_interval_of_kappa_covers_the_truth(few_resamples):
    rng = np.random.default_rng(4)
    targs = rng.choice(5, 100_000, p=[.5, .1, .25, .1, .05])
    pred = targs + rng.normal(0, .8, len(targs))
    truth = number_statistics(pred, targs, grades=True)(np.ones((1, len(targs))))['quadratic_kappa'][0]
    rows = [rng.integers(0, len(targs), 150) for _ in range(DRAWS)]
    ends = [evaluate_numbers(pred[r], targs[r]).quadratic_kappa_interval for r in rows]
    assert LOW - .015 <= np.mean([o.low <= truth <= o.high for o in ends]) <= HIGH + .01


@pytest.mark.parametrize('noise', [.02, .1])
def test_an_interval_of_a_good_model_is_narrow_and_covers_the_truth(few_resamples, noise):
    "Some resamples have no mistake in their order, which is infinite on Fisher's scale"
    rng = np.random.default_rng(7)
    targs = rng.gamma(4, 5, 20_000)
    pred = targs + noise*targs.std()*rng.standard_t(6, len(targs))
    truth = number_statistics(pred, targs)(np.ones((1, len(targs))))['spearman'][0]
    rows = [rng.integers(0, len(targs), 50) for _ in range(300)]
    ends = [evaluate_numbers(pred[r], targs[r]).spearman_interval for r in rows]
    assert np.mean([o.low <= truth <= o.high for o in ends]) >= .93 and np.median([o.high - o.low for o in ends]) < .06


def test_the_interval_of_a_nearly_perfect_kappa_is_narrow():
    targs = np.arange(60) % 4
    pred = targs + (np.arange(60) < 2)
    ev = evaluate_numbers(pred, targs)
    assert ev.quadratic_kappa > .98 and ev.quadratic_kappa_interval.low > .9


def test_grades_come_from_the_training_images():
    "Whole temperatures of a few test images are no grades, and a grade that the test images lack is a mistake"
    of_numbers, of_grades = (number_task(NumberScale.of(o)) for o in ([.5, 20], [0, 1, 4]))
    targs = torch.tensor([1, 2, 3, 2, 1, 3.])
    assert of_numbers.evaluate(targs, targs).quadratic_kappa is None
    pred = targs.numpy().copy()
    pred[5] = 4
    assert of_grades.evaluate(torch.tensor(pred), targs).quadratic_kappa == pytest.approx(skm.cohen_kappa_score(targs.numpy(), pred, weights='quadratic'))
    assert of_grades.evaluate(targs, targs + .5).quadratic_kappa is None


# Prediction intervals

@pytest.mark.parametrize('n, coverage', [(19, .9), (50, .8), (200, .95)])
def test_prediction_intervals_hold_what_they_promise(n, coverage):
    "Over validation sets the mean is the coverage, up to one in n+1; for one set it lies in `coverage_range`"
    rng, shares = np.random.default_rng(5), []
    new = np.sort(np.abs(rng.standard_t(4, 100_000)))
    for _ in range(DRAWS):
        low, high = conformal_interval(rng.standard_t(4, n), coverage)
        assert low == -high
        shares.append(np.searchsorted(new, high, side='right')/len(new))
    exact = np.ceil((n+1)*coverage - 1e-9)/(n+1)
    assert coverage <= exact and np.mean(shares) == pytest.approx(exact, abs=4*np.std(shares)/DRAWS**.5 + .002)
    low, high = coverage_range(n, coverage)
    assert LOW - .01 <= np.mean([low <= s <= high for s in shares]) <= HIGH + .01


def test_groups_are_one_image_each():
    rng, inside = np.random.default_rng(6), dict(grouped=[], plain=[])
    for _ in range(DRAWS):
        groups = np.repeat(np.arange(12), rng.integers(1, 20, 12))
        off = (rng.normal(0, 3, 12)[groups] + rng.normal(0, 1, len(groups)))
        new = rng.normal(0, 3) + rng.normal(0, 1)
        for name, g in (('grouped', groups), ('plain', None)): inside[name].append(abs(new) <= conformal_interval(off, .9, g).high)
    assert np.mean(inside['grouped']) >= .9 - .02 and np.mean(inside['plain']) < np.mean(inside['grouped']) - .02


# Training

def test_fastai_trains_with_the_loss_and_predicts_in_units():
    g = torch.manual_seed(0)
    x = torch.randn(128, 4, generator=g)
    y = 1000 + 300*x[:, 0] - 200*x[:, 1]
    items = list(zip(x, y))
    dls = DataLoaders.from_dsets(items, items, bs=16, device='cpu')
    learn = Learner(dls, nn.Linear(4, 1), loss_func=NumberLoss(NumberScale.of(y)), lr=.1, cbs=[MixUp()])
    learn.logger = noop
    with learn.no_bar(): learn.fit(10)
    pred, targs, losses = learn.get_preds(with_loss=True)
    assert losses.shape == (128,)
    ev = evaluate_numbers(pred.flatten(), targs)
    assert ev.r2 > .95 and y.min() <= pred.min() and pred.max() <= y.max()


@pytest.mark.parametrize('numbers, message', [([1, np.nan], 'must be finite'), ([1, np.inf], 'must be finite'), ([], 'must be finite'), ([2, 2, 2], 'nothing to learn')])
def test_numbers_that_cannot_be_learned(numbers, message):
    with pytest.raises(ValueError, match=message): NumberScale.of(numbers)


def test_a_set_is_described_in_one_line_and_as_a_table():
    rng = np.random.default_rng(0)
    targs = rng.gamma(4, 1000, 60)
    ev = evaluate_numbers(targs + rng.normal(0, 500, 60), targs, groups=np.arange(60)//3)
    assert str(ev).startswith('MAE ') and 'n = 60 in 20 independent groups' in str(ev) and '\n' not in str(ev)
    assert 'groups' not in str(evaluate_numbers(targs, targs + 1, groups=np.arange(60)))   # each image is one
    assert ev.table().metric.tolist() == ['MAE', 'RMSE', 'R²', 'Spearman', 'bias']
    with pytest.raises(KeyError, match='accuracy'): ev.score('accuracy')
    assert {*NUMBER_METRICS} <= {*ev.as_dict()}
