"A leaderboard of several labels per image, and of numbers: ranked by mAP and MAE, compared image by image, continued"
import numpy as np, pytest

from conftest import TINY
from fastbit.metrics.tasks import TASKS
from fastbit.studies import compare_runs, leaderboard
from fastbit.studies.difference import HeldOutProbs, score_difference
from fastbit.studies.trials import run_name
from test_task_folds import data   # noqa: F401

BOARD = dict(archs=['test_efficientnet=random'], size=32, flip=False, crop=False, num_workers=0, verbose=False, recipes=['onecycle'], epochs=2, top=1, group_col='place', test_pct=.2)


def table_of(data, task): return data.drop(columns=['level'] if task == 'labels' else ['labels'])


@pytest.mark.parametrize('task', ['labels', 'number'])
def test_bodies_are_ranked_by_the_headline_of_the_task(data, task, tmp_path):
    out, table = tmp_path/'board', table_of(data, task)
    board = leaderboard(table, **BOARD, task=task, out=out)
    rows, name = board.rows, TASKS[task].headline
    assert board.failures == [] and set(rows.recipe) == {'probe', 'onecycle'} and board.metric == name
    better = rows.score.is_monotonic_increasing if task == 'number' else rows.score.is_monotonic_decreasing
    assert better and rows.accuracy.isna().all() and (rows.score_low < rows.score).all() and (rows.score < rows.score_high).all() and rows.test_score.notna().all()
    runs = [out/'runs'/run_name(r.body, r.recipe) for r in rows.itertuples()]
    held_out = [HeldOutProbs.read(run/'valid.npz') for run in runs]
    for row, run in zip(rows.itertuples(), held_out): assert row.score == pytest.approx(getattr(run.evaluate(), name), rel=1e-5)
    found = score_difference(name, *held_out)
    assert tuple(rows.iloc[1][['behind', 'behind_low', 'behind_high']]) == pytest.approx(tuple(found)) and found.low < found.difference < found.high
    text, page = str(board), (out/'leaderboard.html').read_text()
    words = ['MAE', 'RMSE', 'rows of equal MAE by RMSE'] if task == 'number' else ['mAP', 'rows of equal mAP by loss']
    for o in words: assert o in text, text
    assert 'accuracy' not in text.replace('ImageNet accuracy', '') and ('Lower and further left' if task == 'number' else 'Higher and further left') in page
    assert leaderboard(table, **BOARD, task=task, out=out).rows.equals(rows)   # nothing is left to do
    with pytest.raises(ValueError, match='other images'): leaderboard(table[4:], **BOARD, task=task, out=out)


def test_the_probe_is_compared_with_a_run_of_the_head(data, tmp_path):
    "Both are ridge regression on the same features of the same images"
    table = table_of(data, 'number')
    board = leaderboard(table, **BOARD | dict(recipes=['head'], epochs=None, test_pct=0.), task='number', out=tmp_path/'board')
    assert np.ptp(board.rows.score) < 1e-3*board.rows.score.iloc[0] and board.rows.behind.tolist() == [0, 0] and 'ties with' in board.standing()
    a, b = (tmp_path/'board'/'runs'/run_name(r.body, r.recipe) for r in board.rows.itertuples())
    assert abs(compare_runs(a, b).difference) < 1e-3 and compare_runs(a, b).task == 'number'


@pytest.mark.parametrize('given', [True, False])
def test_a_metric_of_one_label_is_refused_before_any_probe(data, given, tmp_path):
    task = dict(task='labels') if given else {}
    table = table_of(data, 'labels').assign(labels=lambda d: d.labels.replace(';', 'red;green'))
    with pytest.raises(ValueError, match="metric='kappa' is for one label per image. For several labels per image rows are ranked by mAP"):
        leaderboard(table, **BOARD, metric='kappa', label_sep=';', **task, out=tmp_path/'board')
    assert not list(tmp_path.rglob('row.json'))
