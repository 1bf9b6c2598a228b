"Folds of several labels per image and of numbers: each image once, by a model that did not see it; resumed, saved as one model, opened again"
import json, shutil

import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from torch.testing import assert_close

from conftest import TINY
from fastbit.baseline import baseline
from fastbit.baseline import folds as module
from fastbit.core.text import DataWarning
from fastbit.data import image_dataloaders
from fastbit.export import load_predictor
from fastbit.export.onnx import PixelsToProbs
from fastbit.metrics import evaluate_labels, evaluate_numbers
from fastbit.metrics.intervals import FOLDS_WORTH
from fastbit.metrics.numbers import conformal_interval

PX = dict(size=32, num_workers=0, flip=False, crop=False)
OPTIONS = dict(**TINY, **PX, recipe='head', folds=3, group_col='place', verbose=False)
COLORS = ('red', 'green', 'blue')
TASKS = ('labels', 'number')


def write_images(root, n=66):
    "Bands of colors on a background as bright as its number; two images of each place, in a table with both columns"
    root.mkdir()
    rows = []
    for i in range(n):
        rng = np.random.default_rng(i)
        level, labels = rng.uniform(20, 120), [c for k, c in enumerate(COLORS) if (i//2) >> k & 1]
        px = level + rng.normal(0, 25, (30, 30, 3))
        for k, color in enumerate(COLORS): px[10*k:10*k+8, 4:26, k] += 50*(color in labels)
        Image.fromarray(px.clip(0, 255).astype(np.uint8)).save(root/f'{i:02d}.png')
        rows.append((str(root/f'{i:02d}.png'), ';'.join(labels) or ';', round(level/7, 3), f'place {i//2}'))
    return pd.DataFrame(rows, columns=['path', 'labels', 'level', 'place'])


@pytest.fixture(scope='module')
def cache(tmp_path_factory): return str(tmp_path_factory.mktemp('cache'))   # the last bits of features depend on their batches


@pytest.fixture(scope='module')
def data(tmp_path_factory): return write_images(tmp_path_factory.mktemp('images')/'all')


def run(data, task, cache, **options):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('FASTBIT_CACHE', cache)
        table = data.drop(columns=['level'] if task == 'labels' else ['labels'])
        return baseline(table, task=task, test_pct=.2, **OPTIONS, **options)


@pytest.fixture(scope='module')
def runs(data, cache, tmp_path_factory):
    "Task -> (folder of the results, result)"
    root = tmp_path_factory.mktemp('folds')
    return {task: (root/task, run(data, task, cache, out=root/task)) for task in TASKS}


@pytest.mark.parametrize('task', TASKS)
def test_each_image_is_predicted_once_by_a_model_that_did_not_see_it(data, runs, task):
    out, res = runs[task]
    rows, aside = res.predictions, res.learn.dls.image_set.set_aside
    assert sorted([*rows.path, *aside.path]) == sorted(data.path) and rows.path.is_unique
    assert (rows.groupby('group').fold.nunique() == 1).all() and set(rows.group).isdisjoint(aside.group)
    for k in (1, 2, 3):   # as the fold's own loaders have it
        table = image_dataloaders(data.drop(columns=['level'] if task == 'labels' else ['labels']), TINY['arch'], **PX, task=task, test_pct=.2, folds=3, fold=k,
                                  group_col='place', check=False).table
        assert set(table.path[table.split == 'valid']) == set(rows.path[rows.fold == k]) and set(table.path[table.split == 'train']).isdisjoint(rows.path[rows.fold == k])
    own = pd.read_csv(out/'fold-2'/'predictions.csv', keep_default_na=False).set_index('path')
    both = rows[rows.fold == 2].set_index('path').loc[own.index]
    columns = ['prediction'] if task == 'number' else [f'p({c})' for c in COLORS]
    assert np.allclose(own[columns], both[columns], rtol=1e-5, atol=1e-6)


def test_several_labels_are_measured_on_all_images(runs):
    out, res = runs['labels']
    classes, rows = list(res.learn.dls.vocab), pd.read_csv(out/'predictions.csv', keep_default_na=False)
    truth = np.array([[c in str(o).split(';') for c in classes] for o in rows.label]).astype(int)
    want = evaluate_labels(rows[[f'p({c})' for c in classes]].to_numpy(), truth, rows.group, res.thresholds, FOLDS_WORTH)
    e = res.evaluation
    assert e.map == pytest.approx(want.map) and e.exact_match == (rows.label == rows.prediction).mean() == pytest.approx(want.exact_match) and e.n_groups == rows.group.nunique()
    assert e.map_interval == pytest.approx(want.map_interval, abs=1e-6) and 1 > e.map > .6
    one = evaluate_labels(res.probs.numpy(), res.targs.numpy(), rows.group, res.thresholds)
    assert np.diff(e.map_interval) > np.diff(one.map_interval)   # models that share images
    text, page = str(res), (out/'report.html').read_text()
    for words in ('3 models, each image by the one that did not see it: 0.', 'test images, by the mean of all models', 'by F1 on these predictions, so', 'mAP'): assert words in text, words
    assert 'accuracy' not in text and 'held-out' not in text and '3 models: each of the 52 images was predicted by the one that did not see it' in page
    saved = json.loads((out/'results.json').read_text())
    assert saved['folds']['map'] == res.folds.scores and saved['folds']['test']['map'] == res.folds.test.map and len(saved['thresholds']) == 3
    assert res.folds.accuracies is None and res.score.value == e.map


def test_numbers_are_measured_on_all_images(runs):
    out, res = runs['number']
    rows = pd.read_csv(out/'predictions.csv')
    want = evaluate_numbers(rows.prediction, rows.label, rows.group, FOLDS_WORTH)
    assert res.evaluation.mae == pytest.approx(want.mae) and res.evaluation.r2 > .5 and np.allclose(res.evaluation.mae_interval, want.mae_interval, rtol=1e-3)
    assert res.within == pytest.approx(conformal_interval(rows.label - rows.prediction, .9, np.unique(rows.group, return_inverse=True)[1]).high, rel=1e-5)
    assert np.allclose(rows.high - rows.prediction, res.within) and np.allclose(rows.prediction - rows.low, res.within)
    trained = rows.label
    assert (res.scale.low, res.scale.high) == (trained.min(), trained.max()) and res.scale.mean == pytest.approx(trained.mean(), rel=.02)
    text, page = str(res), (out/'report.html').read_text()
    for words in ('MAE', '3 models, each image by the one', 'by the images out of folds', 'test images, by the mean of all models', 'predictions stay from'): assert words in text, words
    assert 'accuracy' not in text and 'Predicted against true level' in page
    saved = json.loads((out/'results.json').read_text())
    assert saved['folds']['mae'] == res.folds.scores and saved['number']['within'] == res.within


@pytest.mark.parametrize('task', TASKS)
def test_interrupted_folds_resume_bit_for_bit(data, runs, cache, tmp_path, task, monkeypatch):
    straight, out = runs[task][1], tmp_path/'out'
    for k in (1, 3): shutil.copytree(runs[task][0]/f'fold-{k}', out/f'fold-{k}')
    trained, train = [], module.FoldsRun._train_one
    monkeypatch.setattr(module.FoldsRun, '_train_one', lambda self, k, verbose: trained.append(k) or train(self, k, verbose))
    with pytest.raises(ValueError, match='fold-1 is of a run with other settings'): run(data, task, cache, seed=1, out=out)
    resumed = run(data, task, cache, out=out)
    assert trained == [2] and resumed.probs.equal(straight.probs) and resumed.predictions.equals(straight.predictions)
    assert resumed.as_dict()['evaluation'] == straight.as_dict()['evaluation'] and resumed.folds.scores == straight.folds.scores
    (out/'results.json').unlink()
    assert run(data, task, cache, out=out).predictions.equals(straight.predictions) and trained == [2]   # nothing is left to train
    other = data.assign(**{'labels' if task == 'labels' else 'level': data['labels' if task == 'labels' else 'level'].to_numpy()[::-1]})
    (out/'results.json').unlink()
    with pytest.raises(ValueError, match='is of other images'): run(other, task, cache, out=out)


@pytest.mark.parametrize('task', TASKS)
def test_the_saved_model_is_the_mean_of_the_folds(runs, task):
    out, res = runs[task]
    whole, members = load_predictor(out, 'cpu'), [load_predictor(out/'model'/str(k), 'cpu') for k in (1, 2, 3)]
    aside = res.learn.dls.image_set.set_aside
    files = aside.path.tolist()
    if task == 'labels':
        answers = lambda p: p.predict(files, probs=True).filter(like='p(').to_numpy()
        assert whole.about.thresholds == tuple(res.thresholds)
    else:
        answers = lambda p: p.predict(files).prediction.to_numpy()
        assert whole.about.within == res.within and len({m.about.number['mean'] for m in members}) == 3   # each has its own scale
    assert np.allclose(answers(whole), np.mean([answers(m) for m in members], axis=0), atol=1e-5)
    again = whole.evaluate(aside[['path', 'label', 'group']], label_col='label', group_col='group', task=task)
    name = whole.task.headline
    assert getattr(again, name) == pytest.approx(getattr(res.folds.test, name), rel=1e-4)
    assert whole.about.evaluation['part'] == 'folds' and whole.about.evaluation[name] == getattr(res.evaluation, name) and 'folds' in str(whole.about)
    assert whole.about.trained_on['images'] == len(res.predictions)
    x = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        ours = PixelsToProbs(whole)(x)[0]   # what an ONNX file computes
        assert_close(ours.double(), whole.task.activation(whole.net(x.permute(0, 3, 1, 2).float()/255).double()), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize('task', TASKS)
def test_an_ensemble_that_is_not_what_it_says_is_refused(runs, task, tmp_path):
    shutil.copytree(runs[task][0]/'model', tmp_path/'model')
    file = tmp_path/'model'/'ensemble.json'
    found = json.loads(file.read_text())
    assert found['format'] == 2   # an earlier version, which would take the outputs for classes, refuses it
    bad = dict(labels=(dict(thresholds=[.5]), '3 numbers from 0 to 1'), number=(dict(within='wide'), 'finite'))[task]
    file.write_text(json.dumps(found | bad[0]))
    with pytest.raises(ValueError, match=bad[1]): load_predictor(tmp_path)


def test_a_label_of_one_image_stays_in_training(data):
    rare = data.assign(labels=data.labels.where(data.index != 5, 'violet;red')).drop(columns=['level', 'place'])
    with pytest.warns(DataWarning, match='1 class.es. are not measured: their images are too few, and stay in training: violet'):
        tables = [image_dataloaders(rare, TINY['arch'], **PX, task='labels', folds=3, fold=k, allow_copies=True, check=False).table for k in (1, 2, 3)]
    for t in tables: assert t.split[t.path == rare.path[5]].item() == 'train'
    held_out = pd.concat([t[t.split == 'valid'] for t in tables])
    assert len(held_out) == 65 and held_out.path.is_unique


def test_the_interval_of_the_mean_model_holds_what_it_promises():
    "Ridge regression on drawn features: the distance out of folds, around the mean of the models"
    rng, n, folds, inside = np.random.default_rng(0), 60, 5, []
    fold = np.arange(n) % folds
    def fit(x, y): return np.linalg.solve(x.T@x + np.eye(x.shape[1]), x.T@y)
    for _ in range(1000):
        x, new, w = rng.normal(size=(n, 8)), rng.normal(size=(40, 8)), rng.normal(size=8)
        y, truth = x@w + rng.normal(size=n), new@w + rng.normal(size=40)
        models = [fit(x[fold != k], y[fold != k]) for k in range(folds)]
        left = np.concatenate([y[fold == k] - x[fold == k]@m for k, m in enumerate(models)])
        inside.append((np.abs(truth - new@np.mean(models, axis=0)) <= conformal_interval(left).high).mean())
    assert .895 < np.mean(inside) < .93
