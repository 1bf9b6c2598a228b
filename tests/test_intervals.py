"Intervals cover what they should, and calibration is what others compute"
import numpy as np, pandas as pd, pytest, torch
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss

from fastbit.metrics import accuracy_interval, brier_scores, calibration_error, effective_size, evaluate_probs
from fastbit.metrics import fit_temperature, reliability_table, wilson_interval
from fastbit.metrics.calibration import few_images_words
from fastbit.metrics.intervals import FOLDS_WORTH, class_mean_interval, logit_interval, mean_interval
from fastbit.studies.compare import grouped_p
from fastbit.studies import compare_runs, mcnemar_p, paired_difference

DRAWS = 1000
# 95 % +- what 1,000 draws allow (three standard errors of a share of .95), and what the intervals' own approximations cost with some hundred images
LOW, HIGH = .95 - 3*(.95*.05/DRAWS)**.5, .95 + 3*(.95*.05/DRAWS)**.5


@pytest.mark.parametrize('n, p', [(60, .85), (131, .9), (359, .98)])
def test_the_accuracy_interval_covers_the_truth(n, p):
    rng = np.random.default_rng(0)
    ends = {k: wilson_interval(k, n) for k in range(n+1)}
    covered = np.mean([ends[k][0] <= p <= ends[k][1] for k in rng.binomial(n, p, DRAWS)])
    assert LOW - .01 <= covered <= HIGH + .01   # shares of n images come in steps, which no interval can smooth


@pytest.mark.parametrize('n, only_a, only_b', [(131, .05, .05), (131, .03, .10), (400, .01, .04)])
def test_the_interval_of_a_difference_covers_the_truth(n, only_a, only_b):
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(DRAWS):
        u = rng.random(n)
        a, b = (u < only_a) | (u > .5), ((u >= only_a) & (u < only_a+only_b)) | (u > .5)
        _, low, high = paired_difference(a, b)
        covered.append(low <= only_b-only_a <= high)
    assert LOW - .005 <= np.mean(covered) <= HIGH + .02   # rather too wide than too narrow where few images differ


def test_the_interval_of_a_difference_of_groups_covers_the_truth():
    "Two runs, of which each is better on some groups"
    rng, covered, found = np.random.default_rng(6), dict(grouped=0, plain=0), []
    for _ in range(DRAWS):
        groups = np.repeat(np.arange(25), rng.integers(2, 12, 25))
        better = rng.choice([0, .5, -.5], 25)[groups]   # no difference in the mean
        u = rng.random(len(groups))
        a, b = u < .6, u < .6 + better
        for name, g in (('grouped', groups), ('plain', None)):
            _, low, high = paired_difference(a, b, groups=g)
            covered[name] += low <= 0 <= high
        found.append(grouped_p(a, b, groups))
    assert LOW - .01 <= covered['grouped']/DRAWS <= HIGH + .015 and covered['plain']/DRAWS < .85, covered
    assert .02 < np.mean(np.array(found) < .05) < .07
    assert grouped_p([True]*4, [True]*4, [0, 0, 1, 1]) == 1


def test_runs_that_agree_everywhere_may_still_differ_elsewhere():
    "Without the two added pairs the interval would be a point, or nothing at all"
    d, low, high = paired_difference([True]*50, [True]*50)
    assert d == 0 and -.06 < low < -.01 and low == pytest.approx(-high)
    assert paired_difference([True]*50, [True]*50 + [False]*0)[2] > paired_difference([True]*500, [True]*500)[2] > 0


def _population(n=200_000, classes=4):
    "Logits and labels: a network that is right about 80 % of the time, and too sure"
    g = torch.Generator().manual_seed(3)
    targs = torch.randint(classes, (n,), generator=g)
    logits = 1.5*torch.randn(n, classes, generator=g)
    logits[torch.arange(n), targs] += 2.5
    return (1.5*logits).softmax(1), targs


def test_the_bootstrap_intervals_cover_the_truth(few_resamples, monkeypatch):
    monkeypatch.setattr('fastbit.metrics.evaluation.RANKED_CELLS', 0)   # areas below curves, which test_scores.py measures
    monkeypatch.setattr('fastbit.metrics.evaluation._ece', lambda *_: 0.)   # has no interval
    probs, targs = _population()
    truth, rng, n = evaluate_probs(probs, targs), np.random.default_rng(2), 300
    covered = dict(loss=0, f1=0, brier=0)
    for _ in range(DRAWS):
        rows = rng.integers(0, len(targs), n)
        ev = evaluate_probs(probs[rows], targs[rows])
        for k, pair, v in (('loss', ev.loss_interval, truth.loss), ('f1', ev.f1_interval, truth.macro_f1), ('brier', ev.brier_interval, truth.brier)): covered[k] += pair[0] <= v <= pair[1]
    for k, v in covered.items(): assert LOW - .01 <= v/DRAWS <= HIGH, (k, v)


def _groups(rng, n_groups, sizes, easy, hard):
    "Rows in groups that are easy or hard as a whole: a group takes its rows from the easy or from the hard ones"
    parts = [rng.choice(easy if rng.random() < .7 else hard, n) for n in rng.integers(*sizes, n_groups)]
    return np.concatenate(parts), np.repeat(np.arange(n_groups), [len(o) for o in parts])


@pytest.mark.parametrize('n_groups, sizes', [(12, (10, 11)), (40, (1, 21))])
def test_intervals_of_groups_cover_the_truth_and_plain_ones_do_not(few_resamples, monkeypatch, n_groups, sizes):
    monkeypatch.setattr('fastbit.metrics.intervals.RESAMPLES', 200)
    probs, targs = _population(50_000)
    sure, losses = probs[torch.arange(len(targs)), targs], -probs[torch.arange(len(targs)), targs].log().numpy()
    right = (probs.argmax(1) == targs).numpy()
    easy, hard = np.flatnonzero(sure > .6), np.flatnonzero(sure <= .6)
    accuracy, loss = (.7*v[easy].mean() + .3*v[hard].mean() for v in (right, losses))
    rng, covered = np.random.default_rng(4), dict(grouped=0, plain=0, loss=0)
    for _ in range(DRAWS):
        rows, groups = _groups(rng, n_groups, sizes, easy, hard)
        for k, g in (('grouped', groups), ('plain', None)):
            low, high = accuracy_interval(right[rows], g)
            covered[k] += low <= accuracy <= high
        low, high = mean_interval(losses[rows], groups=groups)
        covered['loss'] += low <= loss <= high
    shares = {k: v/DRAWS for k, v in covered.items()}
    assert LOW - .01 <= shares['grouped'] <= HIGH + .01, shares   # with few groups rather too wide than too narrow
    assert LOW - .02 <= shares['loss'] <= HIGH, shares
    assert shares['plain'] < .85, shares


@pytest.mark.parametrize('n_folds, n', [(2, 100), (5, 100), (10, 60)])
def test_intervals_out_of_folds_cover_the_accuracy_of_their_models(n_folds, n):
    "Linear classifiers by least squares, and what they reach on 4,000 new images: two thirds of the images make the interval, all of them one too narrow"
    rng, covered = np.random.default_rng(5), dict(folds=0, plain=0)
    centers = .35*rng.normal(size=(3, 20))
    def draw(size, y): return np.c_[centers[y] + rng.normal(size=(size, 20)), np.ones(size)]
    new_y = rng.integers(0, 3, 4000)
    new = draw(4000, new_y)
    for _ in range(DRAWS):
        y = rng.permutation(n) % 3
        x, fold, right, truth = draw(n, y), rng.permutation(n) % n_folds, np.empty(n, bool), []
        for k in range(n_folds):
            t = fold != k
            w = np.linalg.solve(x[t].T@x[t] + np.eye(21), x[t].T@np.eye(3)[y[t]])
            right[~t] = (x[~t]@w).argmax(1) == y[~t]
            truth.append(((new@w).argmax(1) == new_y).mean())
        for name, worth in (('folds', FOLDS_WORTH), ('plain', 1.)):
            low, high = accuracy_interval(right, worth=worth)
            covered[name] += low <= np.mean(truth) <= high
    shares = {k: v/DRAWS for k, v in covered.items()}
    assert LOW - .01 <= shares['folds'] <= HIGH + .01 and shares['plain'] < shares['folds'] - .02, shares


def test_groups_that_agree_count_as_one_image_each():
    groups = np.repeat(np.arange(10), 7)
    right = np.repeat(np.arange(10) < 8, 7)
    assert effective_size(right, groups) == pytest.approx(10, rel=.15)
    assert effective_size(np.ones(70), groups) == 10 and accuracy_interval(np.ones(70), groups).low < .75
    assert accuracy_interval(np.ones(70), np.zeros(70)) == (0, 1)   # one group tells nothing of another
    assert mean_interval(np.ones(70), groups=np.zeros(70)) is None
    assert accuracy_interval(right, np.arange(70)) == wilson_interval(right.sum(), 70)


def test_one_image_has_no_bootstrap_interval():
    ev = evaluate_probs(torch.tensor([[.9, .1]]), torch.tensor([0]))
    assert ev.loss_interval is None and ev.low < 1 and ev.accuracy == 1


def test_calibration_is_torchmetrics_and_scikit_learns():
    from torchmetrics.functional.classification import multiclass_calibration_error
    probs, targs = _population(3000)
    assert calibration_error(reliability_table(probs, targs)) == pytest.approx(multiclass_calibration_error(probs, targs, 4, n_bins=15).item(), abs=1e-6)
    exact = torch.tensor([[1., 0.], [0., 1.], [2/15, 13/15], [.5, .5]])   # on the edges of bins
    assert calibration_error(reliability_table(exact, torch.tensor([0, 0, 1, 1]))) == pytest.approx(multiclass_calibration_error(exact, torch.tensor([0, 0, 1, 1]), 2, n_bins=15).item(), abs=1e-6)
    assert brier_scores(probs, targs).mean() == pytest.approx(brier_score_loss(targs, probs.double()/probs.double().sum(1, keepdim=True), labels=range(4), scale_by_half=False), abs=1e-6)


def test_the_temperature_is_found_and_changes_no_answer():
    probs, targs = _population(20_000)
    T = fit_temperature(probs.log(), targs)
    assert T == pytest.approx(1.5*1.5**2/2.5, rel=.03)   # a gap of 2.5 in noise of 1.5 is worth 2.5/1.5^2, and the logits say 1.5
    scaled = (probs.log()/T).softmax(1)
    assert torch.equal(scaled.argmax(1), probs.argmax(1))
    before, after = evaluate_probs(probs, targs), evaluate_probs(scaled, targs)
    assert after.ece < before.ece/2 and after.loss < before.loss and after.accuracy == before.accuracy


@pytest.mark.parametrize('n', [1, 3])
def test_a_temperature_from_a_handful_of_images_stays_near_one(n):
    "Separable data fit 0.05, wrong answers alone 20; labels of a folder with three validation images are one or the other"
    unsure = torch.tensor([[.39, .2, .2, .11, .1]]).log().repeat(n, 1)
    right, wrong = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.long)
    assert fit_temperature(unsure, right, prior=0) < .06 and fit_temperature(2*unsure, wrong, prior=0) > 3
    assert .4 < fit_temperature(unsure, right) < 1 < fit_temperature(2*unsure, wrong) < 2
    assert fit_temperature(10*unsure[:, :2], right) == pytest.approx(1, abs=.2)   # 99.8 % and right: nothing to gain


def test_a_temperature_is_finite_and_within_bounds():
    from fastbit.metrics.calibration import TEMPERATURES
    for logits in (torch.zeros(5, 3), 1e6*torch.eye(5)[:, :3], 1e-6*torch.eye(5)[:, :3], torch.full((5, 3), -80.)):
        for targs in (torch.zeros(5), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 0, 1, 1, 2])):
            assert TEMPERATURES[0] <= fit_temperature(logits, targs) <= TEMPERATURES[1]
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0)) == pytest.approx(1)


def test_many_images_overrule_the_prior():
    probs, targs = _population(20_000)
    assert fit_temperature(probs.log(), targs) == pytest.approx(fit_temperature(probs.log(), targs, prior=0), rel=.01)


def test_the_shrunken_temperature_is_no_worse_than_none_on_average():
    rng, excess = torch.Generator().manual_seed(1), {'none': 0., 'plain': 0., 'shrunken': 0.}
    def draw(n, t):
        logits = 4*torch.randn(n, 10, generator=rng)
        return t*logits, torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]
    for t in (.7, 1., 1.5, 2.5):
        fresh, fresh_targs = draw(1000, t)
        for _ in range(5):
            few = draw(5, t)
            for how, T in dict(none=1., plain=fit_temperature(*few, prior=0), shrunken=fit_temperature(*few)).items():
                excess[how] += torch.nn.functional.cross_entropy(fresh/T, fresh_targs).item()
    assert excess['shrunken'] < excess['none'] < excess['plain']


def test_few_images_are_said():
    assert few_images_words(12) == '; only 12, so it is shrunk towards 1' and few_images_words(100) == ''


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar_p(3, 12) == pytest.approx(binomtest(3, 15).pvalue) and mcnemar_p(0, 0) == 1


def test_runs_are_compared_whatever_folder_they_were_named_from(tmp_path):
    rows = pd.DataFrame(dict(path=[f'photos/{c}/{i}.png' for c in 'ab' for i in range(30)], label=['a']*30 + ['b']*30, prediction=['a']*27 + ['b']*33, probability=.9, split='valid'))
    other = rows.assign(path=[f'/elsewhere/{p}' for p in rows.path], prediction=['a']*30 + ['b']*30)[::-1]
    (tmp_path/'one').mkdir(); rows.to_csv(tmp_path/'one'/'predictions.csv', index=False); other.to_csv(tmp_path/'other.csv', index=False)
    res = compare_runs(tmp_path/'one', tmp_path/'other.csv')
    assert (res.n, res.only_a, res.only_b, res.difference) == (60, 0, 3, pytest.approx(.05)) and res.low < res.difference < res.high
    with pytest.raises(ValueError, match='other labels'): compare_runs(rows, other.assign(label=other.label.replace('a', 'c')))
    with pytest.raises(ValueError, match='no column'): compare_runs(rows, rows.drop(columns='label'))


def test_the_test_set_is_compared_where_both_have_one():
    rows = pd.DataFrame(dict(path=list('123456'), label='a', prediction=list('aaabab'), split=['valid']*3 + ['test']*3))
    assert compare_runs(rows, rows.assign(prediction='a')).n == 3
    assert compare_runs(rows, rows[rows.split == 'valid'].assign(prediction='a')).n == 3


def test_no_interval_leaves_the_values_that_a_score_can_have():
    "Rounding has carried ends to 1.0000000000000004"
    rng = np.random.default_rng(0)
    for _ in range(3000):
        low, n = rng.choice([0., -1.]), rng.integers(1, 40)
        value = rng.choice([low, 1., rng.uniform(low, 1)])
        for ci in (logit_interval(value, value + rng.choice([0., .1])*rng.normal(0, 1, 20), rng.uniform(2, 30), rng.uniform(1, 40), low),
                   accuracy_interval(np.ones(n, bool), confidence=rng.uniform(.5, .99), worth=rng.uniform(.3, .9))): assert low <= ci.low <= ci.high <= 1, (value, ci)
        right, numbers = rng.random(n) < .9, rng.integers(0, 3, n)
        ci = class_mean_interval(right, numbers, np.unique(numbers), worth=2/3)
        assert 0 <= ci.low <= ci.high <= 1
