"Several labels per image: read, split, trained, resumed, measured, reported, exported, predicted; and what has no meaning is refused in words"
import json, os
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (CategoryBlock, ColReader, DataBlock, ImageBlock, MultiCategoryBlock, RandomSplitter, Resize, accuracy,
                               accuracy_multi)
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, log_loss

from fastbit.baseline import baseline
from fastbit.baseline.other_tasks import OTHER_TASKS
from fastbit.cli.command import main
from fastbit.core.text import DataWarning
from fastbit.data import image_dataloaders, read_image_set
from fastbit.data.label_sets import has_label_sets, label_counts, recognize_separator
from fastbit.export import export_onnx, load_predictor
from fastbit.export.artifact import FORMAT, read_config
from fastbit.metrics.label_calibration import apply_label_temperature
from fastbit.metrics import SEVERAL_LABELS, SINGLE_LABEL, choose_thresholds, evaluate_labels
from fastbit.report.examples import explain_errors, with_features
from fastbit.studies import check_data, compare_runs, few_shot_curve
from fastbit.training import transfer_learner
from fastbit.training.head import labels_head
from conftest import TINY

COLORS = ('red', 'green', 'blue')
PX = dict(size=32, num_workers=0, flip=False, crop=False)
QUIET = dict(verbose=False)


def draw(labels, i) -> Image.Image:
    "Noise with a bright band for each color in `labels`"
    rng = np.random.default_rng(i)
    px = rng.integers(0, 90, (30, 30, 3))
    for k, color in enumerate(COLORS):
        if color in labels: px[10*k:10*k+10, :, k] += 150
    return Image.fromarray(px.astype(np.uint8))


@pytest.fixture(scope='module')
def table(tmp_path_factory) -> Path:
    "labels.csv of 90 pictures: paths, and colors with a semicolon between"
    root, rows = tmp_path_factory.mktemp('colors'), []
    for i in range(90):
        labels = [c for k, c in enumerate(COLORS) if i >> k & 1]   # all eight sets, equally often
        draw(labels, i).save(root/f'{i:02d}.png')
        rows.append((f'{i:02d}.png', ';'.join(labels) or ';'))
    pd.DataFrame(rows, columns=['path', 'labels']).to_csv(root/'labels.csv', index=False)
    return root/'labels.csv'


@pytest.fixture(scope='module')
def run(table, tmp_path_factory):
    "(folder of the results, result) of logistic regression on frozen features, with a test set"
    out = tmp_path_factory.mktemp('run')/'results'
    return out, baseline(table, **TINY, **PX, recipe='head', test_pct=.2, out=out, **QUIET)


def hot(df, classes=COLORS) -> np.ndarray: return np.array([[c in str(o).split(';') for c in classes] for o in df]).astype(int)


# Labels in

def test_all_ways_to_write_labels_read_alike(table):
    df = pd.read_csv(table)
    sets = [tuple(sorted(o.split(';'))) if o != ';' else () for o in df.labels]
    bits = pd.DataFrame(hot(df.labels), columns=COLORS)
    ways = [
        (table, {}),
        (df.assign(labels=sets), {}),
        (df[['path']].join(bits), {}),
        (df[['path']].join(bits).assign(width=30), dict(label_cols='red, green,blue')),
        (df[['path']].join(bits), dict(label_cols=list(COLORS))),
        (df.assign(labels=df.labels.str.replace(';', ' ').str.strip().replace('', ' ')), dict(label_sep=' ')),
        (df.assign(labels=df.labels + ';'), {}),
        (df.assign(labels=[str(list(o)) for o in sets]), dict(task='labels'))]
    for source, options in ways:
        images = read_image_set(source, table.parent, **options)
        assert images.task is SEVERAL_LABELS and images.table.label.tolist() == sets, options
    assert label_counts(images.table.label).to_dict() == {c: sum(c in o for o in sets) for c in sorted(COLORS)}


def test_a_long_table_has_a_row_per_label(table):
    df = pd.DataFrame(dict(path=['00.png', '01.png', '01.png'], labels=['red', 'red', 'blue']))
    with pytest.warns(DataWarning, match='each image has all of their labels'):
        assert read_image_set(df, table.parent, task='labels').table.label.tolist() == [('red',), ('blue', 'red')]
    with pytest.raises(ValueError, match='One file with two labels'): read_image_set(df, table.parent)


def test_links_and_copies_in_class_folders(table, tmp_path):
    for name in ('red', 'blue', 'green'): (tmp_path/name).mkdir()
    first = table.parent/'05.png'
    (tmp_path/'red'/'a.png').write_bytes(first.read_bytes())
    os.link(tmp_path/'red'/'a.png', tmp_path/'blue'/'hard.png')
    os.symlink(tmp_path/'red'/'a.png', tmp_path/'green'/'soft.png')
    (tmp_path/'green'/'copy.png').write_bytes((table.parent/'06.png').read_bytes())
    (tmp_path/'blue'/'other.png').write_bytes((table.parent/'06.png').read_bytes())
    with pytest.warns(DataWarning, match='in several class folders'): images = read_image_set(tmp_path, task='labels')
    assert sorted(images.table.label) == [('blue', 'green'), ('blue', 'green', 'red')] and len(images.skipped) == 3
    assert not has_label_sets(read_image_set(tmp_path).table.label)   # only where it is asked for


@pytest.mark.parametrize('labels, options, words', [
    (['red;blue', 'red', 'blue;red;green', '', 'green;red'], {}, "write ';' alone|empty"),
    (['red;blue', None, 'blue;red', 'red'], dict(task='labels'), 'are empty: row'),
    (['red;;blue', 'red', 'blue'], dict(task='labels'), 'empty label between separators'),
    (['red;blue', 'red|blue', 'red'], dict(task='labels'), "Choose one with label_sep=';'"),
    (['red blue', 'red', 'blue'], dict(task='labels'), "label_sep=' '"),
    (['red;blue', 'blue;red', 'red', 'red', 'blue'], {}, "task='labels'.*task='label'"),
    (['red', 'blue', 'red'], dict(task='tags'), 'it can be label .* or labels'),
    (['red', 'blue', 'red'], dict(task='labels', label_sep='x'), 'not letters or digits'),
    ([';', ';', ';'], dict(task='labels'), 'no label in any row'),
    ([['red'], 'blue', ['red', 'blue']], {}, 'are not lists'),
    ([['red', ''], ['blue']], {}, 'empty label in a list')])
def test_unclear_labels_are_refused_with_what_to_type(labels, options, words, table):
    df = pd.DataFrame(dict(path=[f'{i:02d}.png' for i in range(len(labels))], labels=labels))
    with pytest.raises(ValueError, match=f'(?s)(?i){words}'): read_image_set(df, table.parent, **options)


@pytest.mark.parametrize('change, options, words', [
    (dict(red=[1, 0, np.nan]), {}, 'neither 0 nor 1, e.g. nothing'),
    (dict(red=[1, 0, 2]), {}, 'neither 0 nor 1, e.g. 2'),
    (dict(red=[0]*3, blue=[0]*3), {}, 'no 1 in any row'),
    ({}, dict(label_sep=';'), 'Pass one of them'),
    ({}, dict(label_cols='red'), 'two or more columns'),
    ({}, dict(label_cols='red,violet'), "no column 'violet'")])
def test_columns_of_bits_are_checked(change, options, words, table):
    df = pd.DataFrame(dict(path=['00.png', '01.png', '02.png'], red=[1, 0, 1], blue=[1, 1, 0])).assign(**change)
    with pytest.raises(ValueError, match=words): read_image_set(df, table.parent, **dict(label_cols='red,blue') | options)


def test_one_label_stays_one_label(table):
    df = pd.read_csv(table).assign(labels=lambda d: [f'{o.count(";")} of them' for o in d.labels])
    assert read_image_set(df, table.parent).task is SINGLE_LABEL
    one_hot = pd.DataFrame(dict(path=['00.png', '01.png'], red=[1, 0], blue=[0, 1]))
    with pytest.raises(ValueError, match="(?s)idxmax.*task='labels'"): read_image_set(one_hot, table.parent)
    combined = df.assign(labels=['red;round', 'blue;round', 'red;square']*30)
    assert read_image_set(combined, table.parent, task='label').table.label.nunique() == 3
    assert recognize_separator(['Smith, John', 'Smith, Jane', 'Doe, John']) is None


def test_the_split_holds_out_a_share_of_each_label(table):
    rare = pd.read_csv(table).assign(labels=lambda d: [f'{o.strip(";")};rare' if i % 18 == 0 else o for i, o in enumerate(d.labels)])
    dls = image_dataloaders(rare, TINY['arch'], root=table.parent, **PX, check=False)
    counts = label_counts(dls.table.label[dls.table.split == 'valid'])
    assert dls.valid.n == 18 and counts['rare'] == 1 and all(abs(counts[c] - 9) <= 1 for c in COLORS)
    assert dls.class_counts.tolist() == [label_counts(dls.table.label[dls.table.split == 'train'])[c] for c in dls.vocab]
    assert dls.task is SEVERAL_LABELS and dls.one_batch()[1].shape == (32, 4)


# Training

def test_the_head_is_what_scikit_learn_fits():
    rng = np.random.RandomState(0)
    x = rng.randn(150, 8).astype(np.float32)
    y = (x@rng.randn(8, 4) + rng.randn(150, 4) > [0, 0, 1, 9]).astype(int)   # nobody has the last label
    fit = labels_head(x, y, seed=1)
    from fastbit.training.head import FeatureScaler
    scaled = FeatureScaler().fit(x).transform(x)
    for c in range(3):
        plain = LogisticRegression(C=fit.C, tol=1e-7, max_iter=1000).fit(scaled, y[:, c])
        theirs, ours = plain.predict_proba(scaled)[:, 1], 1/(1 + np.exp(-(x@fit.weight[c] + fit.bias[c])))
        assert np.abs(theirs - ours).max() < 2e-3
    assert not fit.weight[3].any() and fit.bias[3] < -5 and '3-fold' in fit.how


def test_a_new_classifier_begins_at_the_shares_of_the_labels(table):
    dls = image_dataloaders(table, TINY['arch'], **PX, check=False)
    learn = transfer_learner(dls, **TINY)
    shares = (dls.class_counts + .5)/(dls.train.n + 1)
    assert learn.task.key == 'labels' and learn.is_classifier_new
    assert np.allclose(learn.get_preds()[0].numpy(), shares, atol=1e-5)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-2)
    assert not learn.is_classifier_new
    names = learn.recorder.metric_names
    assert names[3] == 'map' and learn.history.epochs['map'].notna().all()


@pytest.mark.parametrize('loss, name', [(None, 'BinaryLoss'), ('asymmetric', 'AsymmetricLoss')])
def test_the_loss_of_a_batch(loss, name, table):
    dls = image_dataloaders(table, TINY['arch'], **PX, check=False)
    learn = transfer_learner(dls, **TINY, loss_func=loss)
    assert type(learn.loss_func).__name__ == name
    x, y = dls.one_batch()
    out = learn.model(x)
    if loss is None: assert learn.loss_func(out, y).item() == pytest.approx(torch.nn.functional.binary_cross_entropy_with_logits(out, y.as_subclass(torch.Tensor)).item(), abs=1e-6)
    learn.loss_func = learn.loss_func   # completed already


def test_what_is_for_one_label_is_refused(table):
    dls = image_dataloaders(table, TINY['arch'], **PX, check=False)
    for options, words in ((dict(loss_func=torch.nn.CrossEntropyLoss()), 'over softmax'), (dict(metrics=[accuracy, accuracy_multi]), None),
                           (dict(loss_func='focal'), 'choose from bce')):
        if words is None: continue
        with pytest.raises(ValueError, match=words): transfer_learner(dls, **TINY, **options)
    learn = transfer_learner(dls, **TINY, metrics=accuracy_multi)
    for options, words in ((dict(balance='loss'), 'asymmetric'), (dict(k_per_class=2), 'one label per image')):
        with pytest.raises(ValueError, match=words): image_dataloaders(table, TINY['arch'], **PX, **options)
    for options, words in ((dict(metric='kappa'), 'mean average precision'), (dict(keep_best='kappa'), "'metric'"), (dict(label_smoothing=.1, recipe='onecycle'), 'Leave it out'),
                           (dict(loss='asymmetric', recipe='head'), 'Pass epochs='), (dict(thresholds='two'), 'choose from one, per_label')):
        with pytest.raises(ValueError, match=words): baseline(table, **TINY, **PX, task='labels', **options, **QUIET)


def test_a_loss_for_several_labels_needs_them(folder):
    with pytest.raises(ValueError, match="thresholds='one' is for several labels"): baseline(folder, **TINY, **PX, thresholds='one', **QUIET)
    with pytest.raises(ValueError, match="for several labels"): baseline(folder, **TINY, **PX, loss='bce', **QUIET)


def test_fastais_loaders(table):
    df = pd.read_csv(table).replace(';', '')
    block = DataBlock((ImageBlock, MultiCategoryBlock), get_x=ColReader('path', pref=f'{table.parent}/'), get_y=ColReader('labels', label_delim=';'),
                      splitter=RandomSplitter(seed=0), item_tfms=Resize(32))
    dls = block.dataloaders(df, bs=16, num_workers=0)
    learn = transfer_learner(dls, **TINY)
    assert learn.task.key == 'labels' and [m.name for m in learn.metrics] == ['map']
    with pytest.warns(DataWarning, match='not only fastbit'), learn.no_bar(), learn.no_logging(): learn.fit_head(solver='lbfgs')
    assert learn.evaluate(show=False).map > .8
    one = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('path', pref=f'{table.parent}/'), get_y=ColReader('labels'),
                    splitter=RandomSplitter(seed=0), item_tfms=Resize(32)).dataloaders(df, bs=16, num_workers=0)
    assert transfer_learner(one, **TINY).task is SINGLE_LABEL


class Stop(Exception): pass


def test_an_interrupted_fit_resumes_bit_for_bit(table, tmp_path):
    from fastai.callback.core import Callback
    class StopAt(Callback):
        order = 90
        def after_step(self):
            if self.learn.train_iter == 3: raise Stop('here')
    def fit(cbs=(), file=None):
        torch.manual_seed(0)
        dls = image_dataloaders(table, TINY['arch'], **PX, bs=32, check=False)
        learn = transfer_learner(dls, **TINY)
        learn.unfreeze()
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2, cbs=list(cbs), checkpoint=file, checkpoint_every=1)
        return learn
    file = tmp_path/'run.safetensors'
    with pytest.raises(Stop): fit([StopAt()], file)
    resumed, whole = fit(file=file), fit(file=tmp_path/'whole.safetensors')
    for k, v in whole.model.state_dict().items(): assert torch.equal(v, resumed.model.state_dict()[k]), k
    assert resumed.history.epochs['map'].tolist() == whole.history.epochs['map'].tolist()


def test_exclusive_labels_answer_as_one_label_does(tmp_path):
    rows = []
    for i in range(120):
        label = COLORS[i % 3]
        draw([label] if i % 5 else [COLORS[(i+1) % 3]], i).save(tmp_path/f'{i:03d}.png')   # a fifth is drawn as another color
        rows.append((f'{i:03d}.png', label, ('train', 'valid')[i//3 % 2]))
    df = pd.DataFrame(rows, columns=['path', 'label', 'split'])
    one, several = (baseline(df, **TINY, **PX, root=tmp_path, recipe='head', task=task, **QUIET) for task in ('label', 'labels'))
    truth, names = one.predictions.set_index('path').label, list(several.learn.dls.vocab)
    best = pd.Series([names[i] for i in several.probs.argmax(1)], index=several.predictions.path)
    right = (best == truth[best.index]).mean()
    assert abs(right - one.evaluation.accuracy) < .07 and right > .6


@pytest.mark.parametrize('recipe, options', [('onecycle', dict(epochs=2)), ('auto', dict(n_steps=6)), ('hyperrule', dict(n_steps=3, batch_size=16)),
                                             ('head', dict(epochs=2)), ('auto', dict(n_steps=4, loss='asymmetric', mixup=.2, keep_best='valid_loss'))])
def test_every_recipe_trains(recipe, options, table):
    keep = dict(keep_best='metric') if recipe == 'onecycle' else {}
    res = baseline(table, **TINY, **PX, recipe=recipe, **options, **keep, **QUIET)
    assert 0 < res.evaluation.map <= 1 and res.learn.task.key == 'labels' and str(res).startswith('mAP')
    if recipe == 'auto': assert ('by validation loss' if 'keep_best' in options else 'by validation mAP') in res.chosen   # what was asked for decides


# Measured, written, opened again

def test_the_metrics_are_scikit_learns(run):
    out, res = run
    df = pd.read_csv(out/'predictions.csv', keep_default_na=False)
    df = df[df.split == 'test']
    probs, truth, said = df[[f'p({c})' for c in res.learn.dls.vocab]].to_numpy(), hot(df.label, res.learn.dls.vocab), hot(df.prediction, res.learn.dls.vocab)
    e = res.evaluation
    assert res.part == 'test' and e.n == len(df) == 18
    assert e.map == pytest.approx(average_precision_score(truth, probs, average='macro'), abs=1e-6)
    assert e.macro_f1 == pytest.approx(f1_score(truth, said, average='macro')) and e.micro_f1 == pytest.approx(f1_score(truth, said, average='micro'))
    assert e.exact_match == pytest.approx((truth == said).all(1).mean()) == (df.label == df.prediction).mean()
    assert e.loss == pytest.approx(np.mean([log_loss(t, p, labels=[0, 1]) for t, p in zip(truth.T, probs.T)]), abs=1e-5)
    assert e.map > .9 and e.map_interval.low < e.map


def test_the_files_of_a_run(run):
    out, res = run
    found = json.loads((out/'results.json').read_text())
    assert found['task'] == 'labels' and found['metric']['name'] == 'map' and found['metric']['value'] == res.evaluation.map
    assert [o['label'] for o in found['evaluation']['per_class']] == list(res.learn.dls.vocab) and len(found['thresholds']) == 3
    text, page = str(res), (out/'report.html').read_text()
    assert 'exact match' in text and 'thresholds' in text and 'accuracy' not in text.replace('accuracy of', '') and 'top-5' not in text
    assert 'average precision' in page and 'One training image per class' in page and 'Most confused' not in page and 'ECE' in page and 'temperature scaling, T = ' in page
    assert 'mAP' in page and all(f'<td>{c}</td>' in page for c in COLORS)


def test_a_reopened_model_predicts_the_same(run, table):
    out, res = run
    model, df = load_predictor(out), res.predictions
    about = read_config(out/'model'/'config.json')
    assert about.task == 'labels' and np.allclose(about.thresholds, res.thresholds) and 'several labels' in str(about)
    found = model.predict(df.path.tolist(), probs=True)
    columns = [f'p({c})' for c in model.classes]
    assert np.abs(found[columns].to_numpy() - df[columns].to_numpy()).max() < 1e-5
    assert [set(o) for o in found.prediction] == [set(filter(None, o.split(';'))) for o in df.prediction]
    assert all(list(p) == sorted(p, reverse=True) for p in found.probability) and (found.reason == '').all()
    again = model.evaluate(df[df.split == 'test'][['path', 'label']], task='labels')
    assert again.map == pytest.approx(res.evaluation.map, abs=1e-4) and again.exact_match == res.evaluation.exact_match
    missing = model.predict([str(table.parent/'none.png'), df.path[0]])
    assert missing.prediction[0] is None and missing.reason[0] and missing.reason[1] == ''
    with pytest.raises(ValueError, match='for one label per image'): model.predict(df.path.tolist(), min_precision=.9)
    with pytest.raises(ValueError, match='not classes of this model: violet'):
        model.evaluate(pd.DataFrame(dict(path=df.path[:2], label=['violet;red', 'red'])), task='labels')


def test_the_onnx_file(run, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    import onnx
    out, res = run
    model = load_predictor(out, 'cpu')
    assert export_onnx(model, tmp_path/'net.onnx') < 1e-4
    told = {p.key: json.loads(p.value) for p in onnx.load(tmp_path/'net.onnx').metadata_props}
    assert told['task'] == 'labels' and np.allclose(told['thresholds'], res.thresholds)
    session = onnxruntime.InferenceSession(tmp_path/'net.onnx', providers=['CPUExecutionProvider'])
    assert [o.name for o in session.get_outputs()] == ['probabilities', 'calibrated']
    x = np.asarray(Image.open(res.predictions.path[0]).convert('RGB').resize((32, 32)))[None]
    p, calibrated = session.run(None, dict(images=x))
    assert p.shape == (1, 3) and (p.sum() > 1.2 or p.sum() < .8)   # no softmax
    assert np.allclose(calibrated, apply_label_temperature(torch.from_numpy(p).double(), res.temperature), atol=1e-4)


def test_an_older_version_refuses_the_model(run, tmp_path):
    cfg = json.loads((run[0]/'model'/'config.json').read_text())
    assert cfg['fastbit']['format'] == FORMAT == 4
    bad = tmp_path/'config.json'
    for change, words in ((dict(format=3), 'unknown fields: task, thresholds'), (dict(thresholds=[.5]), '3 numbers from 0 to 1'), (dict(task='tags'), 'it can be label'),
                          (dict(task='label'), "task is 'label'")):
        bad.write_text(json.dumps(cfg | dict(fastbit=cfg['fastbit'] | change)))
        with pytest.raises(ValueError, match=words): read_config(bad)


def test_a_model_of_one_label_keeps_its_format(folder, tmp_path):
    baseline(folder, **TINY, **PX, recipe='head', out=tmp_path/'run', **QUIET)
    own = json.loads((tmp_path/'run'/'model'/'config.json').read_text())['fastbit']
    assert own['format'] == 3 and not {'task', 'thresholds'} & set(own)


def test_learner_evaluates_reports_and_exports(table, tmp_path):
    dls = image_dataloaders(table, TINY['arch'], **PX, check=False)
    learn = transfer_learner(dls, **TINY)
    with learn.no_bar(), learn.no_logging(): learn.fit_head(solver='lbfgs')
    before = learn.evaluate(show=False)
    chosen = learn.choose_thresholds(per_class=True)
    after = learn.evaluate(show=False)
    assert chosen.shape == (3,) and after.map == before.map and after.macro_f1 >= before.macro_f1 - 1e-9
    assert after.per_class.threshold.tolist() == chosen.tolist() and after.per_class.label.tolist() == list(dls.vocab)
    preds, targs = learn.tta(show=False)
    assert preds.shape == targs.shape == (18, 3) and 'map' in learn.tta(show=False).report
    assert 'average precision' in str(learn.report())
    learn.export(tmp_path/'model')
    assert np.allclose(load_predictor(tmp_path/'model').about.thresholds, chosen)
    new = learn.dls.test_dl([(table.parent/'05.png', ['red', 'blue']), (table.parent/'00.png', [])], with_labels=True)
    assert learn.get_preds(dl=new)[1].sum(1).tolist() == [2, 0]
    with pytest.raises(ValueError, match='violet'): learn.dls.test_dl([(table.parent/'05.png', ['violet'])], with_labels=True)


def test_mistakes_stand_with_the_training_images_that_are_most_similar(table):
    df = pd.read_csv(table)
    df['split'] = ['valid' if i % 5 == 0 else 'train' for i in range(len(df))]
    wrong = df.index[35]
    df.loc[wrong, 'labels'] = 'blue'   # it shows red and green
    found = baseline(df, **TINY, **PX, recipe='head', root=table.parent, split_col='split', verbose=False)
    page = str(found.report())
    assert 'missing blue' in page and 'Below each image' in page and 'title="green;red"' in page
    explained = explain_errors(with_features(found.findings))
    first = explained[str(table.parent/df.path[wrong])]
    assert len(first.neighbors) == 3 and all(0 < o.similarity <= 1 and o.picture.uri for o in first.neighbors)


def test_fastais_pictures_and_pickles(table, tmp_path):
    from fastai.learner import load_learner
    import matplotlib.pyplot as plt
    dls = image_dataloaders(table, TINY['arch'], **PX, check=False)
    learn = transfer_learner(dls, **TINY)
    dls.show_batch(max_n=2)
    with learn.no_bar(): learn.show_results(max_n=2)
    assert any(set(ax.get_title().replace('\n', ';').split(';')) & set(COLORS) for n in plt.get_fignums() for ax in plt.figure(n).axes)
    plt.close('all')
    learn.choose_thresholds()
    learn.path = tmp_path
    from fastai.learner import Learner
    Learner.export(learn, 'learner.pkl')
    with pytest.warns(UserWarning, match='pickle'): again = load_learner(tmp_path/'learner.pkl')
    assert again.task.key == 'labels' and again.dls.task is SEVERAL_LABELS
    with pytest.warns(UserWarning, match='pickle'): model = load_predictor(tmp_path/'learner.pkl', trust_pickle=True)
    assert model.about.task == 'labels' and np.allclose(model.about.thresholds, learn.thresholds)


# The command, and what has no meaning

def test_the_command(table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arch = [f'--{k}={v}' for k, v in TINY.items()]
    assert main(['baseline', str(table), '--task', 'labels', '--label-sep', ';', '--size', '32', '--recipe', 'head', '--out', 'run', *arch]) == 0
    assert 'mAP' in capsys.readouterr().out
    assert main(['predict', 'run', str(table.parent/'07.png'), '--csv']) == 0
    row = pd.read_csv(pd.io.common.StringIO(capsys.readouterr().out)).iloc[0]
    assert set(str(row.prediction).split(';')) <= set(COLORS) and len(str(row.probability).split(';')) == len(row.prediction.split(';'))
    assert main(['predict', 'run', str(table.parent/'07.png')]) == 0 and '%' in capsys.readouterr().out
    assert main(['evaluate', 'run', str(table)]) == 0
    assert 'mAP' in (said := capsys.readouterr().out) and 'red' in said
    index = load_predictor('run', 'cpu').training_index()
    read = pd.read_csv(table, keep_default_na=False).set_index('path').labels
    assert len(index) > 50 and all(set(label.split(';')) == set(read[Path(p).name].split(';')) for p, label in zip(index.paths, index.labels))
    assert main(['similar', 'run', index.paths[0], '-n', '1']) == 0 and index.labels[0] in capsys.readouterr().out
    assert main(['baseline', str(table), '--task', 'label', '--loss', 'bce', '--out', 'other', *arch]) == 2
    assert '--loss bce is for several labels' in capsys.readouterr().err


def test_check_counts_labels_and_finds_wrong_ones(table):
    df = pd.read_csv(table)
    df.loc[3, 'labels'] = 'blue'   # it shows red and green
    found = check_data(df, **TINY, root=table.parent, size=32, verbose=False)
    assert found.classes == 3 and found.n == 90
    wrong = found.rows[found.rows.kind == 'label']
    assert wrong.path.str.endswith('03.png').any() and wrong.detail.str.contains('label').all()


def test_a_curve_of_images_per_class_says_so(table):
    with pytest.raises(ValueError, match='one label per image'): few_shot_curve(table, ks=(1,), repeats=1, **TINY, size=32, verbose=False)


def test_a_run_is_compared_with_what_it_wrote(run): assert compare_runs(run[0], run[1]).identical


# What must not be silent

def test_a_column_without_a_one_and_a_missing_column_are_reported(table, run):
    df = pd.read_csv(table)
    bits = pd.DataFrame(hot(df.labels), columns=COLORS).assign(path=df.path)
    with pytest.warns(DataWarning, match='1 of 4 labels have no 1 in any row: violet'):
        images = read_image_set(bits.assign(violet=0), table.parent)
    assert set(images.hot) == {*COLORS, 'violet'} and '(red, green, blue, violet)' in images.source
    model = load_predictor(run[0], 'cpu')
    with pytest.raises(ValueError, match="no column for 1 of the model's labels: blue"):
        model.evaluate(bits[:8].drop(columns='blue'), root=table.parent, task='labels')
    with pytest.warns(DataWarning, match='in the training set'): assert model.evaluate(bits[80:], root=table.parent).n == 10


def test_names_with_commas_in_written_lists_stay_whole(table):
    cells = ['["sky, low", "sea"]', "['sea']", '[]', "['sky, low' 'sea']", '["men\'s"]', '["men\'s"]']
    df = pd.DataFrame(dict(path=[f'{i:02d}.png' for i in range(6)], labels=cells))
    found = read_image_set(df, table.parent, task='labels').table.label.tolist()
    assert found == [('sea', 'sky, low'), ('sea',), (), ('sea', 'sky, low'), ("men's",), ("men's",)]


def test_options_of_several_labels_are_refused_with_another_task_and_doubtful_separators_warn(table):
    df = pd.DataFrame(dict(path=['00.png', '01.png', '02.png'], labels=['red|blue', 'red', 'blue']))
    for options in (dict(label_sep=';'), dict(label_cols='red,blue')):
        with pytest.raises(ValueError, match='is for several labels per image'): read_image_set(df, table.parent, task='label', **options)
    with pytest.warns(DataWarning, match=r"No cell .* separator ';'.*use label_sep='\|'"): read_image_set(df, table.parent, label_sep=';')


def test_names_with_every_usual_separator_are_written_so_that_they_can_be_read_again():
    from fastbit.data.label_sets import joined_labels, label_separator, read_label_sets
    names = ['a;b|c', 'd,e/f', 'g::h', 'i||j | k']
    cells = pd.Series(joined_labels([tuple(names), (names[0],)], names), name='labels')
    assert read_label_sets(cells, label_separator(names)) == [tuple(names), (names[0],)]


def test_one_label_alone_and_labels_without_validation_images_are_said_in_words_of_several_labels(table):
    one = pd.read_csv(table).assign(labels=lambda d: ['red' if 'red' in o else ';' for o in d.labels])
    with pytest.raises(ValueError, match="Only one label, 'red'.*make two classes"):
        image_dataloaders(one, TINY['arch'], root=table.parent, task='labels', **PX, check=False)
    df = pd.read_csv(table).assign(split=['valid' if i % 5 == 0 and not i & 2 else 'train' for i in range(90)])
    with pytest.warns(DataWarning, match='1 label.*have no validation image, so the mAP does not cover them: green'):
        image_dataloaders(df, TINY['arch'], root=table.parent, **PX)


# Thresholds and temperature of a run

def test_a_run_keeps_its_temperature_and_labels_do_not_depend_on_it(run):
    out, res = run
    model, T = load_predictor(out, 'cpu'), res.temperature
    assert .05 <= T <= 20 and model.about.temperature == pytest.approx(T) and json.loads((out/'results.json').read_text())['temperature'] == T
    assert res.calibrated.exact_match == res.evaluation.exact_match and res.calibrated.micro_f1 == res.evaluation.micro_f1
    assert res.calibrated.map == pytest.approx(res.evaluation.map, abs=1e-6) and 'calibration' in str(res)
    found = model.predict(res.predictions.path.tolist()[:8])
    for plain, scaled in zip(found.probability, found.calibrated):
        want = 1/(1 + np.exp(-np.log(np.array(plain)/(1-np.array(plain)))/T))
        assert len(plain) == len(scaled) and np.allclose(scaled, want, atol=1e-4)
    assert res.learn.calibrate() == pytest.approx(T, rel=1e-3)


def test_one_threshold_per_label_is_an_option_recorded_and_the_same_after_a_resume(table, tmp_path, monkeypatch):
    df = pd.read_csv(table).assign(path=lambda d: [str(table.parent/p) for p in d.path])
    df.loc[::3, 'labels'] = df.labels[1::3].tolist()   # errors, or .5 is as good as any threshold
    df.to_csv(tmp_path/'labels.csv', index=False)
    table, options = tmp_path/'labels.csv', dict(TINY, **PX, recipe='onecycle', epochs=2, thresholds='per_label', **QUIET)
    first = baseline(table, **options, out=tmp_path/'a')
    def stopped(learn): raise Stop('before the choice')
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setitem(OTHER_TASKS, 'labels', OTHER_TASKS['labels']._replace(measure=stopped))
        baseline(table, **options, out=tmp_path/'b')
    assert list((tmp_path/'b').glob('checkpoint*'))
    again = baseline(table, **options, out=tmp_path/'b')
    assert len(set(first.thresholds)) > 1 and 'one per label' in str(first)
    assert again.thresholds.tolist() == first.thresholds.tolist() and again.temperature == first.temperature
    told = json.loads((tmp_path/'a'/'results.json').read_text())
    assert told['thresholds'] == first.thresholds.tolist() and told['settings']['thresholds'] == 'per_label' and "thresholds='per_label'" in told['command']
    assert load_predictor(tmp_path/'a', 'cpu').about.thresholds == tuple(first.thresholds) and 'One threshold per label' in (tmp_path/'a'/'report.html').read_text()
    best = evaluate_labels(first.probs, first.targs, thresholds=choose_thresholds(first.probs.numpy(), first.targs.numpy(), True))
    assert first.evaluation.macro_f1 == pytest.approx(best.macro_f1)
