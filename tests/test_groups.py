"Groups never cross a split, a fold or a draw; figures are those that scikit-learn computes from the same features"
import json, os, warnings
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline

from conftest import TINY, run_fastbit
from fastbit.baseline import baseline
from fastbit.bodies.model import TransferModel
from fastbit.core.text import DataWarning
from fastbit.data import fold_numbers, frozen_features, image_dataloaders, read_image_set
from fastbit.data.groups import group_numbers, untrained_classes
from fastbit.export import load_predictor
from fastbit.metrics import accuracy_interval
from fastbit.report.sections import make_report
from fastbit.training.head import STRENGTHS, FeatureScaler

SMALL = dict(size=32, verbose=False, recipe='head')   # the bundled weights


def write_units(root: Path, classes=3, units=7, frames=5) -> Path:
    "Sprites of moving units, as a game has them: frames of a unit are alike, units of a class hardly"
    rng, rows = np.random.default_rng(3), []
    for k in range(classes):
        folder = root/f'faction{k}'
        folder.mkdir(parents=True)
        for u in range(units):
            unit = rng.integers(0, 256, (6, 6, 3))
            unit[..., k] = np.minimum(255, unit[..., k] + 40)
            for f in range(frames):
                px = np.roll(np.kron(unit, np.ones((6, 6, 1))), f, axis=1) + rng.normal(0, 8, (36, 36, 3))
                file = folder/f'unit{u}-{f}.png'
                Image.fromarray(px.clip(0, 255).astype(np.uint8)).save(file)
                rows.append((f'{folder.name}/{file.name}', folder.name, f'{folder.name}/unit{u}'))
    pd.DataFrame(rows, columns=['path', 'label', 'group']).to_csv(root/'units.csv', index=False)
    return root


@pytest.fixture(scope='module')
def units(tmp_path_factory): return write_units(tmp_path_factory.mktemp('units')/'units')


@pytest.fixture(scope='module')
def cache(units): return os.environ['FASTBIT_CACHE']   # that of the runs which the tests share


def run(units, **options):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        return baseline(units/'units.csv', **SMALL | options)


@pytest.fixture(scope='module')
def grouped(units): return run(units, group_col='group')


@pytest.fixture(scope='module')
def folds(units, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp('folds')
    return out, run(units, group_col='group', folds=3, out=out)


def independent(learn, fold, groups, seed=0):
    "Predictions by scikit-learn alone: for each fold a pipeline on the frozen features of the others, C by grouped cross-validation"
    table = read_image_set(learn.dls.image_set.table).table
    model = learn.model if not learn.model.training else learn.model.eval()
    found = frozen_features(model, list(table.path), learn.dls.preprocess, cache=False)
    x = found.rows[found.index[:, 0]].reshape(len(table), -1)
    y, answers = np.unique(table.label, return_inverse=True)[1], np.full(len(table), -1)
    for k in np.unique(fold[fold >= 0]):
        train = np.flatnonzero(fold != k)
        cv = StratifiedGroupKFold(3, shuffle=True, random_state=seed)
        pipe = make_pipeline(FeatureScaler(), LogisticRegression(max_iter=1000))
        search = GridSearchCV(pipe, dict(logisticregression__C=STRENGTHS), scoring='neg_log_loss', cv=cv)
        search.fit(x[train], y[train], groups=groups[train])
        answers[fold == k] = search.predict(x[fold == k])
    return table, y, answers


def test_groups_and_folds_agree_with_scikit_learn(units, grouped, folds):
    "The random split, the split by groups, and folds by groups, on the structure of sprites"
    learn, table = grouped.learn, grouped.learn.dls.table
    group = np.unique(table.group, return_inverse=True)[1]
    fold = np.where(table.split == 'valid', 0, -1)
    _, y, answers = independent(learn, fold, group)
    held_out = fold == 0
    right = answers[held_out] == y[held_out]
    assert grouped.evaluation.accuracy == right.mean()
    assert (grouped.evaluation.low, grouped.evaluation.high) == accuracy_interval(right, group[held_out])
    assert grouped.evaluation.n_groups == table.group[held_out].nunique()

    pooled = folds[1].predictions.set_index('path')
    numbers = fold_numbers(table.label.to_numpy(), 3, 0, table.group.to_numpy())
    assert (pooled.fold[table.path] == numbers + 1).all()
    _, y, answers = independent(learn, numbers, group)
    names = np.unique(table.label)
    assert (pooled.prediction[table.path].to_numpy() == names[answers]).all()
    assert folds[1].evaluation.accuracy == (answers == y).mean()

    mixed = run(units)
    assert mixed.evaluation.n_groups is None   # frames that moved are no near-duplicates
    assert mixed.evaluation.accuracy > folds[1].evaluation.accuracy + .15   # the random split flatters


def test_the_random_split_warns_and_the_others_do_not(units):
    with pytest.warns(DataWarning, match='Images may belong to groups.*group_col= or group='): baseline(units/'units.csv', **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)
        baseline(units/'units.csv', **SMALL, group_col='group')


def test_no_group_is_on_two_sides(units, folds):
    options = [dict(group_col='group'), dict(group='group'), dict(group=r'faction\d/unit\d+'), dict(group=lambda p: Path(p).parent.name + Path(p).name.split('-')[0])]
    splits = []
    for how in options:
        table = image_dataloaders(units/'units.csv', **TINY_DATA, **how).table
        unit = table.path.str.replace(r'-\d.png', '', regex=True)
        assert table.groupby(unit).split.nunique().max() == 1
        assert (table.groupby('label').split.nunique() == 2).all()
        splits.append(table.split.tolist())
    assert all(s == splits[0] for s in splits)
    rows = folds[1].predictions
    assert rows.groupby('group').fold.nunique().max() == 1
    assert sorted(rows.path) == sorted(read_image_set(units/'units.csv').table.path)   # disjoint and complete


TINY_DATA = dict(arch=TINY['arch'], size=32, num_workers=0)


def test_few_shot_draws_take_one_image_per_group_first(units):
    table = image_dataloaders(units/'units.csv', **TINY_DATA, group_col='group', k_per_class=4).table
    train = table[table.split == 'train']
    assert (train.groupby('label').size() == 4).all() and (train.groupby('label').group.nunique() == 4).all()


def test_the_latest_images_are_held_out(units, tmp_path):
    df = pd.read_csv(units/'units.csv')
    df = df.assign(path=[units/p for p in df.path], year=np.random.default_rng(0).permutation(len(df)))
    table = image_dataloaders(df, **TINY_DATA, time='year', test_pct=.1).table
    order = ['train', 'valid', 'test']
    for a, b in zip(order, order[1:]): assert table.time[table.split == a].max() < table.time[table.split == b].min()
    with pytest.raises(ValueError, match="time='exif': 105 of 105 images have no date"): image_dataloaders(df, **TINY_DATA, time='exif')
    with pytest.raises(ValueError, match="time='year' is for tables.*time='exif'"): image_dataloaders(units, **TINY_DATA, time='year')


def test_near_duplicates_stay_together_unless_allowed(tmp_path, make_folder):
    folder = make_folder(dict(a=12, b=12), 'pictures')
    rng = np.random.default_rng(0)
    for f in sorted(folder.rglob('*.png')):   # pictures that differ, and a copy of each, re-encoded
        img = Image.fromarray(np.kron(rng.integers(0, 256, (6, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8))
        img.save(f)
        img.save(f.with_name(f.stem + '-copy.jpg'), quality=95)
    dls = image_dataloaders(folder, **TINY_DATA)
    stem = dls.table.path.str.replace(r'(-copy)?\.\w+$', '', regex=True)
    assert dls.table.groupby(stem).split.nunique().max() == 1 and 'near-duplicates of 24 pictures kept together' in dls.image_set.split
    assert image_dataloaders(folder, **TINY_DATA, allow_copies=True).table.groupby(stem).split.nunique().max() == 2
    split = dls.table.assign(split=['train', 'valid']*24)[['path', 'label', 'split']]
    with pytest.warns(DataWarning, match='24 of 24 validation images are near-duplicates of images in training'): image_dataloaders(split, **TINY_DATA)


@pytest.mark.parametrize('options, message', [
    (dict(group_col='patient'), "group_col='patient': there is no column 'patient'"),
    (dict(group='['), 'is not a regular expression'),
    (dict(group='patient'), 'matches none of 105 paths'),
    (dict(group='faction'), 'all 105 images into one group'),
    (dict(group_col='group', group='unit'), 'Pass one of them'),
    (dict(folds=1), 'folds=1: 2 or more'),
    (dict(fold=2), 'fold=2 without folds='),
    (dict(folds=3, fold=4), 'fold=4: 1 to folds=3'),
    (dict(folds=3, valid_pct=.3), 'a fold is 1/3'),
    (dict(folds=3, time='label'), 'the latest images are one part'),
    (dict(folds=3, budget='10m'), 'a budget is for one model'),
    (dict(folds=50, group_col='group'), '21 groups are too few for 50 folds'),
])
def test_what_cannot_be_grouped_is_refused(units, options, message):
    with pytest.raises(ValueError, match=message.replace('[', r'\[')): run(units, **options)


def test_a_class_that_is_one_group_is_refused_or_stays_in_training(units):
    df = pd.read_csv(units/'units.csv')
    df = df.assign(path=[str(units/p) for p in df.path])
    with pytest.raises(ValueError, match='The images of each class are one group'): image_dataloaders(df.assign(patient=df.label), **TINY_DATA, group_col='patient')
    one = df[(df.label != 'faction0') | (df.group == 'faction0/unit0')]
    with pytest.warns(DataWarning, match='not measured: their images are one group, and stay in training: faction0'):
        table = image_dataloaders(one, **TINY_DATA, group_col='group', folds=3, fold=1).table
    assert set(table.split[table.label == 'faction0']) == {'train'}
    assert untrained_classes(one.label.to_numpy(), fold_numbers(one.label.to_numpy(), 3, 0, one.group.to_numpy())) == ['faction0']


def test_interrupted_folds_resume_bit_for_bit(units, folds, cache, tmp_path, monkeypatch):
    monkeypatch.setenv('FASTBIT_CACHE', cache)   # the last bits of features depend on their batches
    from fastbit.baseline import folds as module
    straight, n = folds[1], []
    train = module.FoldsRun._train_one
    def stops(self, k, verbose):
        n.append(k)
        if k == 3: raise KeyboardInterrupt
        return train(self, k, verbose)
    monkeypatch.setattr(module.FoldsRun, '_train_one', stops)
    with pytest.raises(KeyboardInterrupt): run(units, group_col='group', folds=3, out=tmp_path/'out')
    monkeypatch.setattr(module.FoldsRun, '_train_one', lambda self, k, verbose: n.append(-k) or train(self, k, verbose))
    with pytest.raises(ValueError, match='fold-1 is of a run with other settings'): run(units, group_col='group', folds=3, seed=1, out=tmp_path/'out')
    resumed = run(units, group_col='group', folds=3, out=tmp_path/'out')
    assert n == [1, 2, 3, -3]
    assert resumed.probs.equal(straight.probs) and resumed.evaluation == straight.evaluation
    assert resumed.predictions.equals(straight.predictions)


def test_the_ensemble_is_the_mean_of_its_members(units, folds):
    out, result = folds
    files = [str(p) for p in sorted(units.rglob('*.png'))[:7]]
    whole = load_predictor(out)
    members = [load_predictor(out/'model'/str(k)) for k in (1, 2, 3)]
    probs = [p.predict(files, probs=True).filter(like='p(').to_numpy() for p in members]
    found = whole.predict(files, probs=True)
    assert np.allclose(found.filter(like='p(').to_numpy(), np.mean(probs, axis=0), atol=1e-5)
    assert whole.about.evaluation['part'] == 'folds' and whole.about.temperature == result.temperature
    saved = json.loads((out/'results.json').read_text())
    assert saved['folds']['accuracies'] == result.folds.accuracies and saved['settings']['folds'] == 3
    assert 'fold' in pd.read_csv(out/'predictions.csv') and (out/'report.html').exists()


def test_the_report_of_folds_shows_training_images_of_the_other_folds(folds):
    out, result = folds
    features, page = result.findings.features, (out/'report.html').read_text()
    among, own = features.folds
    near = features.nearest(3).index
    assert near.shape == (len(own), 3) and (among[near] != own[:, None]).all()
    group = dict(zip(result.predictions.path, result.predictions.group))
    for i, row in enumerate(features.rows): assert group[str(result.findings.paths[row])] not in {group[features.train.paths[k]] for k in near[i]}
    assert 'Below each mistake' in page and 'Points: images, each held out once' in page
    trained = replace(result.findings, folds=None, features=None)   # as if each fold had trained its body
    assert 'the features of these models cannot be compared' in make_report(trained).html.replace('\n', ' ')


def test_the_test_set_of_folds_is_measured_by_the_metric_of_the_run(units):
    result = run(units, group_col='group', folds=2, test_pct=.3, metric='macro_f1')
    score = result.folds.test.score('macro_f1')
    assert f'test        macro-F1 {score.value:.4f} (95% CI ' in str(result) and 'accuracy' in str(result).split('test   ')[1]


def test_the_command_groups_and_folds(units, tmp_path):
    options = ['--arch', TINY['arch'], '--weights', 'random', '--size', '32', '--recipe', 'head']
    done = run_fastbit('baseline', units/'units.csv', *options, '--group-col', 'group', '--folds', '3', '--out', tmp_path/'out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'fold 3 of 3: accuracy' in done.stdout and 'on 105 images in 21 groups' in done.stdout and 'for 3 folds' in done.stdout
    refused = run_fastbit('baseline', units, '--group-col', 'group', cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count('\n') == 1 and '--group-regex' in refused.stderr
    assert run_fastbit('rule', units/'units.csv', '--group-regex', r'unit\d', cwd=tmp_path).returncode == 0


def test_evaluation_of_new_images_respects_groups(units, folds):
    with pytest.warns(DataWarning, match='105 of these 105 images were in the training set'):
        found = load_predictor(folds[0]).evaluate(units/'units.csv', group_col='group')
    assert found.n_groups == 21 and found.high - found.low > .05
