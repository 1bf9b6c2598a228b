"Groups never cross a split, a fold or a draw; figures are those that scikit-learn computes from the same features"
import json, os, re, shutil, warnings
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline

from conftest import TINY, picture, run_fastbit, write_folder
from fastbit.baseline import baseline
from fastbit.bodies.model import TransferModel
from fastbit.cli.command import main
from fastbit.cli.models import trained_groups
from fastbit.core.text import DataWarning
from fastbit.data import fold_numbers, frozen_features, image_dataloaders, path_groups, read_image_set
from fastbit.data.groups import group_numbers, untrained_classes
from fastbit.export import load_predictor
from fastbit.metrics import accuracy_interval
from fastbit.report.sections import make_report
from fastbit.studies import check_data
from fastbit.training.guards import FitStopped
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
    with pytest.warns(DataWarning, match=r"Images may belong to groups.*may name them \(21 groups.*with group= \(--group-regex\) '"): baseline(units/'units.csv', **SMALL)
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


def test_groups_of_one_image_are_reported(tmp_path):
    "They change nothing"
    folder = write_folder(tmp_path/'data', dict(blue=3, green=3))
    table = pd.DataFrame(dict(path=[str(f) for f in sorted(folder.rglob('*.png'))], label=[*'aaabbb'], scan=[*'123456']))
    with pytest.warns(DataWarning, match="Each of 6 images is a group by itself .column 'scan'."): read_image_set(table, group_col='scan')
    with pytest.warns(DataWarning, match='Each of 6 images is a group by itself'): read_image_set(folder, group=r'(.*)\.png')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_image_set(table.assign(scan=[*'112345']), group_col='scan')


@pytest.mark.parametrize('nothing', [None, float('nan'), np.nan, pd.NA, pd.NaT])
def test_images_that_a_function_names_no_group_for_stand_alone(nothing):
    paths = [f'site{i % 3}/{i}.png' for i in range(12)]
    name = lambda p: ('site', 0) if 'site0' in p else nothing if 'site1' in p else 'other'
    with pytest.warns(DataWarning, match='names no group for 4 of 12 paths, and each of these images counts as a group'): found = path_groups(paths, name)
    assert pd.Series(found).value_counts().tolist() == [4, 4, 1, 1, 1, 1]


@pytest.mark.parametrize('options, message', [
    (dict(group=lambda p: None), 'names a group for none of 105 paths'),
    (dict(group_col='patient'), "group_col='patient': the table has no column 'patient'"),
    (dict(group='['), 'is not a regular expression'),
    (dict(group='patient'), 'matches none of 105 paths'),
    (dict(group='faction'), 'all 105 images into one group'),
    (dict(group_col='group', group='unit'), 'Pass one of them'),
    (dict(folds=1), 'folds=1: 2 or more'),
    (dict(fold=2), 'fold=2 without folds='),
    (dict(folds=3, fold=4), 'fold=4: 1 to folds=3'),
    (dict(folds=3, valid_pct=.3), 'a fold is 1/3'),
    (dict(folds=3, time='label'), 'the latest images are one part'),
    (dict(folds=3, budget='10m'), "a budget is for one model. Pass one of them; recipe='head' takes"),
    (dict(folds=50, group_col='group'), '21 independent groups are too few for 50 folds'),
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


@pytest.fixture
def cohort(tmp_path):
    "cohort(rows) -> CSV file of made-up pictures: (label, group, split) of each"
    def write(rows, **columns):
        table = pd.DataFrame(rows, columns=['label', 'group', 'split']).assign(path=[f'{i}.png' for i in range(len(rows))], **columns)
        for i, label in enumerate(table.label): picture(i, sorted(set(table.label)).index(label), (36, 36)).save(tmp_path/f'{i}.png')
        table.drop(columns=[c for c in ('group', 'split') if (table[c] == '').all()]).to_csv(tmp_path/'cohort.csv', index=False)
        return tmp_path/'cohort.csv'
    return write


def folds_of(table, n, **options):
    "The fold of each image, from the loaders of each fold"
    dls = [image_dataloaders(table, **TINY_DATA, folds=n, fold=k, **options) for k in range(1, n+1)]
    return dls, pd.concat([d.table[d.table.split == 'valid'] for d in dls])


def test_a_group_that_trains_for_a_lone_class_is_measured_in_no_fold(cohort):
    rows = [(label, f'p{g}', '') for g in range(6) for label in ('a', 'b') for _ in range(3)] + [('rare', 'p5', '')]*4
    with pytest.warns(DataWarning, match='rare; with them 6 images of other classes, of the same groups'): dls, measured = folds_of(cohort(rows), 3, group_col='group')
    assert 'p5' not in set(measured.group) and set(measured.group) == {f'p{g}' for g in range(5)}
    for d in dls: assert not set(d.table.group[d.table.split == 'valid']) & set(d.table.group[d.table.split == 'train'])


def test_a_fold_that_would_have_nothing_to_measure_is_refused_at_once(cohort):
    rows = [(label, f'p{g}', '') for g in range(3) for label in ('a', 'b') for _ in range(3)] + [('rare', 'p2', '')]*4
    with pytest.raises(ValueError, match='folds=3: fold . has no images to measure, .* such as folds=2'): folds_of(cohort(rows), 3, group_col='group')


def test_images_of_one_group_can_be_tested_but_not_divided(cohort, tmp_path):
    rows = [(label, f'p{g}', 'train') for g in range(4) for label in ('a', 'b') for _ in range(3)] + [(label, 'p9', 'test') for label in ('a', 'b') for _ in range(4)]
    table = cohort(rows)
    result = baseline(table, **SMALL, group_col='group', folds=2, out=tmp_path/'out')
    assert result.folds.test.n == 8 and (result.folds.test.low, result.folds.test.high) == (0, 1)   # one group tells nothing about another
    only = pd.read_csv(table).query("split == 'test'").drop(columns='split').assign(path=lambda d: [str(tmp_path/p) for p in d.path])
    predictor = load_predictor(tmp_path/'out')
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)   # nor was it trained on them
        assert predictor.evaluate(only, group_col='group').n == 8
    with pytest.raises(ValueError, match='puts all 8 images into one group'): image_dataloaders(only, **TINY_DATA, group_col='group')


def test_the_test_set_of_folds_is_checked_once_for_all(cohort, tmp_path):
    rows = [(label, f'p{i}', 'train') for i in range(6) for label in ('a', 'b')] + [('a', 'p0', 'test')]*2 + [('b', 'p9', 'test')]*2 + [('new', 'p9', 'test')]*3
    table = cohort(rows)
    shutil.copy(tmp_path/'1.png', tmp_path/'14.png')   # a test image that is in training too
    with pytest.warns(DataWarning) as said: dls, measured = folds_of(table, 2, group_col='group')
    words = '\n'.join(str(w.message) for w in said)
    assert '3 of 7 images in the test set are not used' in words and "2 of 4 test images belong to groups (column 'group') that are also in training" in words
    assert words.count('byte for byte in training too') == words.count('are not used') == 1 and len(measured) == 12
    assert len(dls[1].image_set.set_aside) == 4 and 'no training images' in dls[0].skipped.reason.iloc[0]


@pytest.mark.parametrize('options, words', [
    (dict(folds=2, test_pct=.1), 'test_pct=0.1, and the data already has a split'), (dict(time='when'), "time='when', and the data already has a split")])
def test_a_split_of_the_data_and_another_are_one_too_many(cohort, options, words):
    rows = [(label, '', split) for split in ('train', 'valid') for label in ('a', 'b') for _ in range(4)]
    with pytest.raises(ValueError, match=words): image_dataloaders(cohort(rows, when=range(16)), **TINY_DATA, **options)


def test_the_same_time_is_not_cut_and_a_large_one_is_said(cohort):
    table = cohort([('ab'[i % 2], '', '') for i in range(60)], year=[2020]*6 + [2021]*42 + [2022]*12)
    split = lambda t: image_dataloaders(t, **TINY_DATA, time='year').table
    assert (split(table).split == 'valid').sum() == 12
    late = cohort([('ab'[i % 2], '', '') for i in range(60)], year=[2020]*6 + [2021]*54)
    with pytest.warns(DataWarning, match='54 of 60 images are held out instead of 12: too many have the same time'): assert (split(late).split == 'valid').sum() == 54


def test_near_duplicates_in_other_folds_are_said(cohort, tmp_path):
    table = cohort([(label, f'p{i}', '') for i in range(6) for label in ('a', 'b')])
    with Image.open(tmp_path/'0.png') as img: img.resize((64, 64)).save(tmp_path/'2.png')   # the picture of another group
    numbers = pd.read_csv(table).assign(group=[f'p{i}' for i in range(12)])
    numbers.to_csv(table, index=False)
    found = [w for w in _said(lambda: folds_of(table, 6, group_col='group')) if 'near-duplicates of images in other folds too' in w]
    assert len(found) == 1 and found[0].startswith('2 of 12 images')
    assert found[0].endswith('Give groups that share pictures one name, or leave one image of each pair out.')


def _said(f) -> list:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        f()
    return [str(w.message) for w in said]


def test_folds_of_other_images_are_not_continued(units, cache, tmp_path, monkeypatch):
    "An image that was added, or has another label, may have been seen by the model that would measure it"
    from fastbit.baseline import folds as module
    here = shutil.copytree(units, tmp_path/'units')
    train, n = module.FoldsRun._train_one, []
    def once(self, k, verbose):
        if n: raise KeyboardInterrupt
        n.append(k)
        return train(self, k, verbose)
    with monkeypatch.context() as m:
        m.setattr(module.FoldsRun, '_train_one', once)
        with pytest.raises(KeyboardInterrupt): run(here, group_col='group', folds=3, out=tmp_path/'out')
    table = pd.read_csv(here/'units.csv')
    table.assign(label=table.label.where(table.index != 3, 'faction2')).to_csv(here/'units.csv', index=False)
    with pytest.raises(ValueError, match='fold-1 is of other images: files, labels or groups have changed'): run(here, group_col='group', folds=3, out=tmp_path/'out')


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


def test_ctrl_c_during_folds_says_what_is_kept(units, folds, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('FASTBIT_CACHE', cache)
    from fastbit.baseline.folds import FoldsRun
    from fastbit.baseline.run import Run
    def stops(*args): raise KeyboardInterrupt
    def fit_stops(*args): raise FitStopped('Stopped after step 3 of 9')
    command = ['baseline', units/'units.csv', '--size', 32, '--recipe', 'head', '--group-col', 'group', '--folds', 3, '--out', tmp_path/'out']
    for k in (1, 2): shutil.copytree(folds[0]/f'fold-{k}', tmp_path/'out'/f'fold-{k}')
    with monkeypatch.context() as m:
        m.setattr(FoldsRun, '_train_one', stops)
        assert main([*map(str, command)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == 'fastbit: stopped. Finished folds are saved (2 of 3); rerun the same command to train the others.'
    monkeypatch.setattr(Run, '_train_phase', fit_stops)
    assert main([*map(str, command)]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith('The same command trains this fold again')


def test_the_ensemble_is_the_mean_of_its_members(units, folds):
    out, result = folds
    files = [str(p) for p in sorted(units.rglob('*.png'))[:7]]
    whole = load_predictor(out)
    members = [load_predictor(out/'model'/str(k)) for k in (1, 2, 3)]
    probs = [p.predict(files, probs=True).filter(like='p(').to_numpy() for p in members]
    found = whole.predict(files, probs=True)
    assert np.allclose(found.filter(like='p(').to_numpy(), np.mean(probs, axis=0), atol=1e-5)
    with pytest.raises(ValueError, match=r'Train one model, without folds= \(--folds\)'): whole.predict(files, min_precision=.9)
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


# A column that may name groups

@pytest.mark.parametrize('name, values, warned', [
    ('patient_id', [f'p{i//2}' for i in range(40)], True), ('Video', [f'v{i//3}' for i in range(40)], True), ('Subjects', [i % 9 for i in range(40)], True),
    ('patient_id', [f'p{i}' for i in range(40)], False),        # another one for each image
    ('patient_id', ['p1']*40, False), ('age', [i//2 for i in range(40)], False), ('patience', [i//2 for i in range(40)], False)])
def test_a_column_that_may_name_groups_is_not_passed_over(tmp_path, recwarn, name, values, warned):
    df = _with_files(tmp_path)
    df[name] = values
    read_image_set(df)
    found = [str(w.message) for w in recwarn if 'may name groups' in str(w.message)]
    assert len(found) == warned and all(f'group_col={name!r}' in o for o in found)


def test_groups_that_are_named_and_splits_that_are_given_are_not_warned_about(tmp_path, recwarn):
    df = _with_files(tmp_path).assign(patient_id=[f'p{i//2}' for i in range(40)])
    read_image_set(df, group_col='patient_id')
    read_image_set(df.assign(split=['train', 'valid']*20))
    assert not [w for w in recwarn if 'may name groups' in str(w.message)]


def _with_files(root: Path) -> pd.DataFrame:
    files = [root/f'{i}.png' for i in range(40)]
    for i, f in enumerate(files): Image.new('RGB', (8, 8), (6*i, 0, 0)).save(f)
    return pd.DataFrame(dict(path=files, label=['cat', 'dog']*20))


def test_what_makes_figures_too_good_is_in_the_report_and_the_card(tmp_path):
    "A reviewer reads the report, not the terminal"
    folder = write_folder(tmp_path/'data', dict(blue=12, green=12, red=12))
    files = sorted(folder.rglob('*.png'))
    table = pd.DataFrame(dict(path=[str(f) for f in files], label=[f.parent.name for f in files], patient=[f'p{i % 12}' for i in range(36)]))
    Image.open(files[0]).resize((48, 40)).save(files[1])   # of another patient
    shared = dict(TINY, size=32, num_workers=0, recipe='head', epochs=1, verbose=False)
    with pytest.warns(DataWarning, match='near-duplicates of images in other folds'):
        baseline(table, group_col='patient', folds=3, out=tmp_path/'folds', **shared)
    with pytest.warns(DataWarning, match="Column 'patient' may name groups"): plain = baseline(table, out=tmp_path/'plain', **shared)
    assert plain.advice[0].kind == 'groups' and all("group_col='patient'" in a.command for a in plain.advice if a.command.startswith(('baseline', 'leaderboard')))
    for name, words in (('folds', '2 of 36 images are near-duplicates of images in other folds too, so the accuracy is too high.'), ('plain', 'may name groups')):
        report, card = (tmp_path/name/'report.html').read_text(), (tmp_path/name/'model'/'README.md').read_text()
        assert words in report and words in card and str(tmp_path) not in card
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert 'may name groups' not in str(baseline(table.drop(columns='patient'), **shared).report())


@pytest.mark.filterwarnings("ignore:.*were in the training set")
def test_evaluate_groups_as_the_run_did(units, folds, tmp_path, capsys):
    "Or says that it does not; what the user gives comes first"
    frames, words = pd.read_csv(units/'units.csv'), "groups      as in training (--group-col group)"
    frames = frames.assign(path=[str(units/p) for p in frames.path])
    frames.to_csv(tmp_path/'t.csv', index=False)
    frames.drop(columns='group').to_csv(tmp_path/'plain.csv', index=False)
    def evaluate(name, *more):
        assert main(['evaluate', str(folds[0]), str(tmp_path/name), '--all', *more]) == 0
        return capsys.readouterr().out
    grouped, given = evaluate('t.csv'), evaluate('t.csv', '--group-col', 'group')
    assert words in grouped and 'as in training' not in given and grouped.replace(f'  {words}\n', '') == given
    settings = tmp_path/'results.json'   # of a DataFrame, of a later version, of none
    for changes, expected in ((dict(path='DataFrame'), dict(group_col='group')), (dict(later=1), {}), (dict(group_col=None), {})):
        record = json.loads((folds[0]/'results.json').read_text())
        record['settings'] |= changes
        settings.write_text(json.dumps(record))
        assert trained_groups(tmp_path) == expected
    settings.unlink()
    assert trained_groups(tmp_path) == {}
    plain = evaluate('plain.csv')
    assert 'groups      none: these images do not have those of the training (--group-col group)' in plain
    assert interval_of(plain) != interval_of(grouped)
    assert 'groups ' not in evaluate('t.csv', '--group-regex', r'(faction\d)').partition('accuracy')[0]


def test_the_paragraph_for_a_paper_names_folds_and_groups(folds, grouped):
    said = folds[1].methods
    assert "were measured by 3-fold cross-validation: stratified, seed 0, 21 groups (column 'group') kept together." in said
    assert 'Training of 3 models, one per fold' in said and 'a Wilson score interval for the effective number of independent images' in said
    assert 'random crops' not in said   # the head sees the images as they are
    assert 'Training of one model' in grouped.methods and 'for validation' in grouped.methods


def interval_of(text) -> str: return re.search('95% CI ([^)]*)', text)[1]


@pytest.mark.parametrize('source, options', [
    ('flat.csv', dict(group_col='group')),
    ('./flat.csv', dict(group_col='group')),
    ('.', dict(group=r'faction\d/unit\d'))])
def test_groups_are_found_from_the_working_directory(units, cache, tmp_path, monkeypatch, source, options):
    # the table had './below/x.png' and the loaders 'below/x.png': the run ended in a KeyError, and an interval
    # in Python silently took the images for independent
    at = tmp_path/'below'
    shutil.copytree(units, at)
    (at/'units.csv').rename(tmp_path/'flat.csv')
    monkeypatch.chdir(at if source == '.' else tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DataWarning)
        result = baseline(source, folds=3, out=tmp_path/'out', **SMALL | options)
    assert result.evaluation.n_groups == 21
    assert result.measured.groups is not None


def test_a_missing_file_is_reported_where_the_others_are(units, tmp_path, monkeypatch):
    shutil.copytree(units/'faction0', tmp_path/'pictures')
    names = [*sorted(o.name for o in (tmp_path/'pictures').iterdir()), 'gone.png']
    pd.DataFrame(dict(image=names, label=['a', 'b']*(len(names)//2))).to_csv(tmp_path/'flat.csv', index=False)
    monkeypatch.chdir(tmp_path)
    paths = read_image_set('flat.csv').table.path
    assert str(Path('pictures')/'gone.png') in set(paths)
    assert all(str(Path(o)) == o for o in paths)


def patients(diagnoses) -> pd.DataFrame:
    "Three images per patient; `diagnoses`: a text of three letters each"
    rows = [(f'{p}-{i}.png', label, f'P{p:02d}') for p, labels in enumerate(diagnoses) for i, label in enumerate(labels)]
    return pd.DataFrame(rows, columns=['path', 'label', 'patient'])


@pytest.mark.parametrize('diagnoses, said', [
    (['aaa', 'bbb']*6 + ['aab'], True),                # a typing error, or one name for two patients
    (['aaa', 'bbb']*6, False),
    (['aab', 'abb', 'aaa', 'bbb']*4, False),           # a patient may have both
    (['a'*8, 'b'*8]*9 + ['a'*7 + 'b']*3, False),       # three of 21 are more than a few typing errors
    (['aaa']*60 + ['aab', 'aba'], False)])             # by chance: rare labels fall into groups of others
def test_a_group_of_two_classes_among_groups_of_one_is_reported(diagnoses, said):
    found = [o for o in _said(lambda: read_image_set(patients(diagnoses), group_col='patient')) if 'of several classes' in o]
    assert len(found) == said
    if not said: return
    assert found[0].startswith("In 1 of 13 groups (column 'patient') the images are of several classes")
    assert '\n  P12: a 2, b 1\n' in found[0]


def test_what_all_folds_share_is_printed_once(cohort, tmp_path):
    table = cohort([(label, f'p{i}', '') for i in range(6) for label in ['a']*3 + ['b']*2])
    (tmp_path/'3.png').write_bytes(b'no image')
    options = '--group-col group --folds 3 --size 32 --recipe head --out out --balance loss --metric balanced_accuracy'
    run = run_fastbit('baseline', table.name, *options.split(), cwd=tmp_path)
    assert run.returncode == 0
    assert run.stderr.count('cannot be read') == 1
    assert '; 3 folds, 1 skipped\n' in run.stdout
    assert len(re.findall(r'^fold \d of 3: accuracy \d+\.\d%, balanced accuracy \d+\.\d\d% on', run.stdout, re.M)) == 3
    methods = json.loads((tmp_path/'out'/'results.json').read_text())['methods']
    assert '2 classes; 1 unreadable file skipped)' in methods
    assert re.search(r'So that classes count alike: class weights 0\.\d+ to 1\.\d+ .*\. Result: balanced', methods)


def test_the_check_hands_on_options_and_a_column_that_may_name_groups(cohort, tmp_path):
    table = cohort([(label, f'p{i}', '') for i in range(4) for label in ['a']*3 + ['b']*2])
    pd.read_csv(table).rename(columns=dict(group='patient')).to_csv(table, index=False)
    next_of = lambda *options: run_fastbit('check', table.name, '--no-labels', *options, cwd=tmp_path).stdout.splitlines()[-1]
    assert next_of() == '  nothing was changed; next: fastbit baseline cohort.csv --group-col patient'
    given = '--path-col path --label-col label --group-col patient'
    assert next_of(*given.split()) == f'  nothing was changed; next: fastbit baseline cohort.csv {given}'


def test_advice_about_groups_can_be_followed():
    "An expression that finds groups in these paths, or a way without one"
    from fastbit.data.groups import group_remedy, named_groups, path_groups
    names = dict(
        frames=('{c}/clip{g}_frame{i:03d}.jpg', True), folder=('{c}/{g}/{i}.jpg', True), person=('{c}/x_Patient-{g}_{i}.png', True),
        repeated=('{c}/{s}-{i}.png', True), numbers=('{c}/{k:05d}.jpg', False), camera=('{c}/DSC_{k:05d}.jpg', False), words=('{c}/{w}.jpg', False))
    for name, (text, has_groups) in names.items():
        rows = [(c, 6*ci + s, s, i) for ci, c in enumerate('ab') for s in range(6) for i in range(4)]
        paths = [text.format(c=c, g=g, s=s, i=i, k=4*g + i, w='qwertyuiopasdfghjklzxcvb'[4*s + i]*3) for c, g, s, i in rows]
        found = named_groups(paths, [p[0] for p in paths])
        assert (found is not None) == has_groups, name
        remedy = group_remedy(paths, [p[0] for p in paths])
        assert ('regex' in remedy, 'group_col=' in remedy) == (has_groups, not has_groups)
        if not has_groups: continue
        assert found.n in (6, 12) and found.pattern in remedy and '\\' not in found.pattern
        assert len(set(path_groups(paths, found.pattern))) == found.n


def test_the_check_says_how_to_keep_groups_together(units):
    text = str(check_data(units/'units.csv', size=32, verbose=False))
    assert 'keep each group in one split' in text and '21 groups' in text and "group= (--group-regex) '" in text, text
