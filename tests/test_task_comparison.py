"Two runs of several labels, or of numbers: differences are those of the metrics, their intervals cover the truth, and other tasks are refused"
import numpy as np, pandas as pd, pytest

from fastbit.metrics import evaluate_labels, evaluate_numbers
from fastbit.metrics.multilabel import label_statistics
from fastbit.metrics.numbers import number_statistics
from fastbit.studies import compare_runs
from fastbit.studies.task_difference import LabelAnswers, label_difference, number_difference
from test_scores import DRAWS, HIGH, LOW


def two_label_runs(better, common=.6, shares=(.5, .3, .15), n=100_000):
    "Two runs on a population, whose mistakes are to a part the same ones"
    rng = np.random.default_rng(1)
    targs = rng.random((n, len(shares))) < shares
    shared = rng.normal(size=targs.shape)
    def run(gap):
        z = gap*targs + common**.5*shared + (1-common)**.5*rng.normal(size=targs.shape) + np.log(shares)
        return LabelAnswers.of(1/(1 + np.exp(-z)))
    return run(1.5), run(1.5 + better), targs


def label_value(name, answers, targs):
    if name == 'map': return label_statistics(answers.probs, targs)(np.ones((1, len(targs))))['map'][0]
    if name == 'exact_match': return (answers.chosen == targs).all(1).mean()
    if name == 'loss': return -np.where(targs, np.log(answers.probs), np.log1p(-answers.probs)).mean()
    return label_statistics(answers.chosen.astype(float), targs, ranks=False)(np.ones((1, len(targs))))[name][0]


@pytest.mark.parametrize('names, better', [(('map', 'loss'), .4), (('macro_f1', 'exact_match'), 0.)])
def test_intervals_of_differences_of_labels_cover_the_truth(few_resamples, names, better):
    a, b, targs = two_label_runs(better)
    truth = {k: label_value(k, b, targs) - label_value(k, a, targs) for k in names}
    rng, covered = np.random.default_rng(2), dict.fromkeys(names, 0)
    for _ in range(DRAWS):
        rows = rng.integers(0, len(targs), 120)
        one, other = (LabelAnswers(o.probs[rows], o.chosen[rows]) for o in (a, b))
        for k in names:
            _, low, high = label_difference(k, one, other, targs[rows])
            covered[k] += low <= truth[k] <= high
    for k, v in covered.items(): assert LOW - .015 <= v/DRAWS <= HIGH + .025, covered


@pytest.mark.parametrize('grouped', [False, True])
def test_intervals_of_differences_of_numbers_cover_the_truth(few_resamples, grouped):
    "The second run is better on images that are hard for both; images of a group have errors in common"
    rng, each = np.random.default_rng(3), 4 if grouped else 1
    def draw(n):
        groups = np.repeat(np.arange(n//each), each)
        targs, hard = rng.gamma(4, 5, n), rng.standard_t(8, n//each)[groups]
        own = [rng.normal(0, 1, n) + rng.normal(0, 1, n//each)[groups]*grouped for _ in range(2)]
        return targs + 3*hard + own[0], targs + 2*hard + own[1], targs, groups if grouped else None
    a, b, targs, _ = draw(200_000)
    names = ('mae', 'rmse')
    of = lambda pred: {k: v[0] for k, v in number_statistics(pred, targs)(np.ones((1, len(targs)))).items()}
    truth, covered = {k: of(b)[k] - of(a)[k] for k in names}, dict.fromkeys(names, 0)
    for _ in range(DRAWS):
        one, other, y, groups = draw(120)
        for k in names:
            _, low, high = number_difference(k, one, other, y, groups)
            covered[k] += low <= truth[k] <= high
    for k, v in covered.items(): assert (.88 if grouped and k != 'mae' else LOW - .015) <= v/DRAWS <= HIGH + .015, covered   # 30 groups: too few for a variance


CLASSES = ('cat', 'dog', 'hen')


def labels_frame(seed, gap=2., n=80):
    rng = np.random.default_rng(0)
    targs, noise = rng.random((n, 3)) < .4, np.random.default_rng(seed).normal(size=(n, 3))
    probs = 1/(1 + np.exp(1 - gap*targs - noise))
    text = lambda rows: [';'.join(c for c, has in zip(CLASSES, row) if has) for row in rows]
    columns = {f'p({c})': probs[:, i] for i, c in enumerate(CLASSES)}
    return pd.DataFrame(dict(path=[f'/a/{i}.png' for i in range(n)], split='valid', label=text(targs), prediction=text(probs >= .4), **columns)), targs, probs


def numbers_frame(seed, noise=2., n=80):
    targs = np.random.default_rng(0).normal(30, 8, n)
    found = targs + np.random.default_rng(seed).normal(0, noise, n)
    return pd.DataFrame(dict(path=[f'/a/{i}.png' for i in range(n)], split='valid', label=targs, prediction=found, low=found - 3, high=found + 3))


def test_two_runs_of_several_labels(tmp_path):
    (a, targs, p), (b, _, q) = labels_frame(1), labels_frame(2, gap=5.)
    b.to_csv(tmp_path/'b.csv', index=False)
    found = compare_runs(a, tmp_path/'b.csv')
    first, second = evaluate_labels(p, targs, thresholds=.4), evaluate_labels(q, targs, thresholds=.4)
    for k in ('map', 'macro_f1', 'micro_f1', 'exact_match', 'loss'):
        row = found.rows.loc[k]
        assert row.a == pytest.approx(first.score(k).value) and row.b == pytest.approx(second.score(k).value), k
        assert row.difference == pytest.approx(row.b - row.a, abs=1e-6) and row.low < row.difference < row.high, k
    assert found.task == 'labels' and found.verdict() == 'mAP: b is better' and found.difference == found.rows.difference['map'] > 0
    assert str(found).startswith('several labels per image, on the same 80 images\n') and 'exact match' in str(found) and 'points' in str(found)
    back = compare_runs(b, a)
    assert (back.difference, back.low) == pytest.approx((-found.difference, -found.high), abs=.01) and back.verdict() == 'mAP: a is better'
    assert compare_runs(a, a).verdict() == 'identical predictions' and compare_runs(a, a).low < 0 < compare_runs(a, a).high
    assert compare_runs(a, a.assign(path=a.path.str.replace('/a/', '/other/'))).identical
    with pytest.raises(ValueError, match='trained with other labels, e.g. of 0.png'): compare_runs(a, b.assign(label='cat'))
    with pytest.raises(ValueError, match="different labels, e.g. 'emu' in only one"): compare_runs(a, b.rename(columns={'p(hen)': 'p(emu)'}))
    with pytest.raises(ValueError, match='evaluated on different images'): compare_runs(a, b[:40])


def test_two_runs_of_numbers(tmp_path):
    a, b = numbers_frame(1, 3.), numbers_frame(2, 1.5)
    a.to_csv(tmp_path/'predictions.csv', index=False)
    found = compare_runs(tmp_path, b)
    first, second = (evaluate_numbers(o.prediction, o.label) for o in (a, b))
    for k in ('mae', 'rmse', 'r2', 'spearman'):
        row = found.rows.loc[k]
        assert (row.a, row.b) == pytest.approx((getattr(first, k), getattr(second, k))) and row.difference == pytest.approx(row.b - row.a) and row.low < row.difference < row.high
    assert 'quadratic_kappa' not in found.rows.index and found.verdict() == 'MAE, lower is better: b is better' and found.high < 0
    assert found.rows.verdict['r2'] == 'b is better' and 'a number per image, on the same 80 images' in str(found)
    groups = np.arange(80)//4
    twice = compare_runs(a.assign(group=groups), b.assign(group=groups))
    assert twice.n_groups == 20 and 'in 20 independent groups' in str(twice)
    folds = compare_runs(a.assign(fold=1), b.assign(fold=1))
    assert folds.high - folds.low > 1.1*(found.high - found.low) and 'a model that did not see it' in str(folds)
    with pytest.raises(ValueError, match='trained with other numbers, e.g. of 0.png'): compare_runs(a, b.assign(label=b.label + 1))
    few = compare_runs(a[:1], b[:1])
    assert few.rows.verdict['mae'] == 'unknown' and 'undefined' in str(few)


def test_runs_of_different_tasks_are_refused():
    frames = dict(labels=labels_frame(1)[0], number=numbers_frame(1))
    frames['label'] = frames['number'][['path', 'split']].assign(label='cat', prediction='dog', probability=.7)
    names = dict(label='one label per image', labels='several labels per image', number='a number per image')
    for a in frames:
        for b in set(frames) - {a}:
            with pytest.raises(ValueError, match=f'first run predicts {names[a]}, and the second {names[b]}.*task={a!r}'): compare_runs(frames[a], frames[b])
