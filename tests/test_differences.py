"Boards and curves by any score: the difference of two runs covers what it should, and the score that was asked for decides"
import json, sys

import numpy as np, pandas as pd, pytest, sklearn.metrics as skm

from fastbit.cli.command import main
from fastbit.metrics.scores import metric_value
from fastbit.studies import few_shot_curve, leaderboard, paired_difference
from fastbit.studies.difference import HeldOutProbs, difference_text, score_difference
from fastbit.studies.few_shot import few_shot_page
from fastbit.studies.trials import rank_rows, row_rank
from conftest import TINY, write_folder
from test_scores import DRAWS, HIGH, LOW


def two_runs(shares, gap, common, better=0., n=200_000):
    "Two runs on a population, whose mistakes are to a part the same ones"
    rng = np.random.default_rng(1)
    targs, k = rng.choice(len(shares), n, p=shares), len(shares)
    shared = rng.standard_normal((n, k))
    def run(gap):
        logits = 1.5*(common**.5*shared + (1-common)**.5*rng.standard_normal((n, k))) + .5*np.log(shares)
        logits[np.arange(n), targs] += gap
        probs = np.exp(logits)
        return probs/probs.sum(1, keepdims=True)
    return run(gap), run(gap + better), targs


@pytest.mark.parametrize('watched, n, shares, gap, common, better', [
    (('roc_auc', 'macro_f1'), 150, (.6, .25, .1, .05), 2.5, .7, .3), (('kappa', 'pr_auc'), 200, (.9, .1), 3.5, .7, .4),
    (('balanced_accuracy', 'matthews'), 100, (.5, .5), 3., .97, 0.)])   # the last two hardly differ
def test_the_interval_of_a_difference_covers_the_truth(few_resamples, watched, n, shares, gap, common, better):
    a, b, targs = two_runs(shares, gap, common, better)
    truth = {k: metric_value(k, b, targs) - metric_value(k, a, targs) for k in watched}
    rng, covered = np.random.default_rng(2), dict.fromkeys(watched, 0)
    for _ in range(DRAWS):
        rows = rng.integers(0, len(targs), n)
        one, other = (HeldOutProbs(o[rows], targs[rows]) for o in (a, b))
        for k in watched:
            _, low, high = score_difference(k, one, other)
            covered[k] += low <= truth[k] <= high
    most = 1. if common > .9 else HIGH + .025   # rather too wide than too narrow where few images differ
    for k, v in covered.items(): assert LOW - .015 <= v/DRAWS <= most, covered


def random_runs(seed=0, n=90, shares=(.6, .3, .1)):
    a, b, targs = two_runs(shares, 2., .5, .5, n=n)
    return HeldOutProbs(a, targs), HeldOutProbs(b, targs)


def test_differences_are_scikit_learns():
    a, b = random_runs()
    of = dict(
        balanced_accuracy=lambda r: skm.balanced_accuracy_score(r.targs, r.probs.argmax(1)), kappa=lambda r: skm.cohen_kappa_score(r.targs, r.probs.argmax(1)),
        macro_f1=lambda r: skm.f1_score(r.targs, r.probs.argmax(1), average='macro'), loss=lambda r: skm.log_loss(r.targs, r.probs, labels=range(3)),
        roc_auc=lambda r: skm.roc_auc_score(r.targs, r.probs, multi_class='ovr'), matthews=lambda r: skm.matthews_corrcoef(r.targs, r.probs.argmax(1)))
    for name, score in of.items():
        found, back = score_difference(name, a, b), score_difference(name, b, a)
        assert found.difference == pytest.approx(score(b) - score(a), abs=1e-9) and found.low < found.difference < found.high, name
        assert (back.difference, back.low) == pytest.approx((-found.difference, -found.high), abs=.02), name
    right = lambda r: r.probs.argmax(1) == r.targs
    assert score_difference('accuracy', a, b) == paired_difference(right(a), right(b))


def test_a_run_may_differ_from_itself_elsewhere():
    a, _ = random_runs()
    for name in ('balanced_accuracy', 'kappa', 'roc_auc'):
        d, low, high = score_difference(name, a, a)
        assert d == 0 and -.2 < low < -.005 and low == pytest.approx(-high), name
    one_class = HeldOutProbs(a.probs, np.zeros(90, int))
    assert np.isnan(score_difference('roc_auc', one_class, one_class).difference)
    with pytest.raises(ValueError, match='different images'): score_difference('kappa', a, one_class)
    broken = HeldOutProbs(np.full((90, 3), np.nan), a.targs)
    assert np.isnan(score_difference('kappa', a, broken).difference) and difference_text('kappa', float('nan'), 0, 0) == 'undefined'


def test_images_of_one_group_count_once():
    a, b = random_runs()
    copies = [HeldOutProbs(np.repeat(r.probs, 4, 0), np.repeat(r.targs, 4), groups=np.repeat(np.arange(90), 4)) for r in (a, b)]
    for name in ('balanced_accuracy', 'roc_auc', 'loss'):
        plain, grouped = score_difference(name, a, b), score_difference(name, *copies)
        assert grouped == pytest.approx(plain, abs=.03), name
        assert grouped.high - grouped.low > 1.5*np.diff(score_difference(name, *(HeldOutProbs(r.probs, r.targs) for r in copies))[1:]).item()


def test_rows_are_ranked_by_the_metric():
    row = lambda name, score, loss, failed='': dict(body=name, recipe='probe', score=score, loss=loss, failed=failed)
    rows = [row('failed', float('nan'), float('nan'), 'no weights'), row('undefined', float('nan'), .1), row('low', .2, .2), row('high', .9, .9), row('tied', .9, .8)]
    names = lambda metric: [r['body'] for r in sorted(rows, key=lambda r: row_rank(r, metric))]
    assert names('kappa') == ['tied', 'high', 'low', 'undefined', 'failed'] and names('loss') == ['low', 'tied', 'high', 'undefined', 'failed']


@pytest.fixture(scope='module')
def few_of_one(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('few')/'photos', dict(blue=24, green=16, red=8))


@pytest.fixture(scope='module')
def board(few_of_one, tmp_path_factory):
    args = dict(archs=['test_efficientnet=random', 'test_efficientnet_ln=random'], size=32, recipes='head', top=1, num_workers=0, test_pct=.2)
    return leaderboard(few_of_one, out=tmp_path_factory.mktemp('out')/'board', metric='macro_f1', verbose=False, **args), args


def test_a_board_by_another_score(board, few_of_one, capsys):
    board, args = board
    df = board.rows
    tuned = df[df.recipe == 'head'].iloc[0]
    run = json.loads(next(board.out.glob('runs/*-head/results.json')).read_text())
    assert run['settings']['metric'] == 'macro_f1' and tuned.score == run['validation']['macro_f1'] and tuned.test_score == run['evaluation']['macro_f1']
    assert df.score.is_monotonic_decreasing and (df.score_low <= df.score).all() and df.behind.iloc[0] == 0 and df.behind_low.lt(0).all()
    runs = [HeldOutProbs.read(f) for f in (board.out/'runs').glob('*/valid.npz')]
    assert {round(skm.f1_score(r.targs, r.probs.argmax(1), average='macro'), 9) for r in runs} == set(df.score.round(9))
    for text in (str(board), board.html()):
        assert 'macro-F1' in text and 'ranked by macro-F1' in text and 'difference in macro-F1' in text and 'percentage points' not in text
        assert f'macro-F1 {df.iloc[0].test_score:.3f}' in text
    again = leaderboard(few_of_one, out=board.out, metric='macro_f1', **args)
    assert again.rows.equals(df) and capsys.readouterr().out.count('from an earlier call') == len(df)
    with pytest.raises(ValueError, match=r"another metric \('macro_f1', now 'accuracy'\)"): leaderboard(few_of_one, out=board.out, verbose=False, **args)


@pytest.mark.filterwarnings('ignore:1 class')
def test_a_board_without_validation_images_of_two_classes_is_refused(tmp_path):
    for part, counts in dict(train=dict(blue=6, red=6), valid=dict(blue=4)).items(): write_folder(tmp_path/'photos'/part, counts)
    args = dict(archs='test_efficientnet=random', size=32, num_workers=0, top=0, verbose=False)
    with pytest.raises(ValueError, match="metric='roc_auc' is undefined: all validation images are of one class"): leaderboard(tmp_path/'photos', metric='roc_auc', **args)


@pytest.mark.parametrize('metric', ['kappa', 'loss', 'balanced_accuracy'])
def test_a_curve_by_another_score(metric, few_of_one, tmp_path):
    args = dict(ks=(1, 3), repeats=2, **TINY, size=32, num_workers=0, batch_size=8, n_steps=4, scale=None, verbose=False)
    df, fig = few_shot_curve(few_of_one, metric=metric, out=tmp_path/'curve.csv', **args)
    assert list(df) == ['k', 'repeat', metric, 'low', 'high'] and (df.low <= df[metric]).all() and (df[metric] <= df.high).all()
    page, label = (tmp_path/'curve.html').read_text(), metric.replace('_', ' ').replace('kappa', "Cohen's kappa")
    assert label in fig.axes[0].get_ylabel() and f"median {label}".replace("'", '&#39;') in page and ('points' in page) == (metric == 'balanced_accuracy')


def test_words_of_a_curve_by_loss():
    "Lower is better: the worst draw is the highest, a gain is a decrease"
    df = pd.DataFrame(dict(k=[1, 1, 5, 5], repeat=[0, 1]*2, loss=[2., 1.8, .9, .7], low=.1, high=3.))
    page = few_shot_page(df, 20, metric='loss').html
    assert 'gained 1.100, more than the draws differ. Twice the images per class would gain about 0.474' in page and page.index('0.900') < page.index('0.700')
    df.loss = [.9, .7, 2., 1.8]
    assert 'gained nothing' in few_shot_page(df, 20, metric='loss').html


def test_the_command_says_what_it_knows(few_of_one, capsys):
    assert main(['leaderboard', str(few_of_one), '--metric', 'f1']) == 2
    assert "--metric f1: unknown metric, did you mean macro_f1?" in capsys.readouterr().err.replace("'", '')
