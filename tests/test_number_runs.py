"Predicting a number, from the table to the deployed model"
import json, warnings
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.data.block import DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, RandomSplitter
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from conftest import TINY
from fastbit.baseline import baseline
from fastbit.baseline.quantity import number_steps
from fastbit.cli.command import main
from fastbit.core.text import DataWarning
from fastbit.data import image_dataloaders
from fastbit.data.tables import read_image_set
from fastbit.export import export_onnx, load_predictor
from fastbit.metrics import NumberLoss, evaluate_numbers
from fastbit.studies import check_data, compare_runs
from fastbit.training import transfer_learner

PX = dict(size=32, num_workers=0)
PLAIN = dict(flip=False, crop=False, verbose=False)


def gray(level: float, i: int) -> Image.Image:
    "A noisy picture as bright as its number"
    noise = np.random.default_rng(i).integers(-25, 25, (24, 20, 3))
    return Image.fromarray((level + noise).clip(0, 255).astype(np.uint8))


def write_table(root, n=60, numbers=None):
    "numbers.csv: the brightness of each picture, in units of its own"
    (root/'images').mkdir(parents=True)
    numbers = np.random.default_rng(0).uniform(30, 220, n) if numbers is None else numbers
    for i, v in enumerate(numbers): gray(v, i).save(root/'images'/f'{i:03d}.png')
    df = pd.DataFrame(dict(file=[f'images/{i:03d}.png' for i in range(n)], brightness=(1000 + numbers/10).round(3)))
    df.to_csv(root/'numbers.csv', index=False)
    return root/'numbers.csv'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "(table, folder of results, result) of the head"
    root = tmp_path_factory.mktemp('numbers')
    file = write_table(root)
    return file, root/'results', baseline(file, **TINY, **PX, **PLAIN, recipe='head', test_pct=.2, out=root/'results')


def check_error(message, file, **options):
    with pytest.raises(ValueError, match=message): baseline(file, **TINY, **PX, **PLAIN, recipe='head', **options)


# Tables

def test_decimals_are_recognized_and_whole_numbers_are_asked_for(run, tmp_path):
    df = pd.read_csv(run[0])
    root = run[0].parent
    assert read_image_set(df, root).task.is_number and read_image_set(df, root).column == 'brightness'
    whole = df.assign(brightness=(df.brightness*1000).astype(int))
    with pytest.raises(ValueError, match=r"60 different numbers.*task='number'.*task='label'"): read_image_set(whole, root)
    assert read_image_set(whole, root, task='number').task.is_number
    assert read_image_set(whole, root, task='label').task.is_single
    assert read_image_set(df.assign(brightness=np.arange(60) % 4), root).task.is_single   # grades are classes, unless asked for
    with pytest.raises(ValueError, match='is a folder'): read_image_set(root/'images', task='number')


@pytest.mark.parametrize('cell, message', [('', 'an empty cell'), ('nan', 'nan'), ('inf', 'inf'), ('12 g', '12 g'), ('1e999', '1e999')])
def test_what_is_no_number_is_reported(run, tmp_path, cell, message):
    df = pd.read_csv(run[0], dtype=str)
    df.loc[7, 'brightness'] = cell
    df.file = [str(run[0].parent/o) for o in df.file]
    df.to_csv(tmp_path/'bad.csv', index=False)
    check_error(f'1 of 60 cells that are not finite numbers[^$]*{message}', tmp_path/'bad.csv', task='number')


def test_a_constant_number_and_options_of_classes_are_refused(run, tmp_path):
    df = pd.read_csv(run[0])
    df.file = [str(run[0].parent/o) for o in df.file]
    check_error('nothing to learn', df.assign(brightness=7.5), task='number')
    for options, message in ((dict(metric='kappa'), 'is for one label per image'), (dict(balance='loss'), 'is for one label per image'),
                             (dict(k_per_class=3), 'is for one label per image'), (dict(loss='bce'), 'Choose from smooth_l1, mse, l1'), (dict(label_smoothing=.1), 'Leave it out')):
        check_error(message, df, task='number', **options)
    check_error("it can be label", df, task='regression')
    check_error('or fewer images in a smaller table', df, task='number', budget='1s')   # k_per_class= would be refused


def test_a_split_has_small_and_large_numbers_on_both_sides(run):
    table = image_dataloaders(run[0], TINY['arch'], **PX).table
    train, valid = (table.label[table.split == s] for s in ('train', 'valid'))
    assert len(valid) == 12 and abs(train.mean() - valid.mean()) < .15*table.label.std()


def test_groups_stay_together(run):
    df = pd.read_csv(run[0]).assign(patient=np.arange(60)//4)
    table = image_dataloaders(df, TINY['arch'], **PX, root=run[0].parent, label_col='brightness', group_col='patient').table
    assert (table.groupby('group').split.nunique() == 1).all() and 0 < (table.split == 'valid').sum() < 30


# The run

def test_the_result_says_what_was_measured(run):
    file, out, res = run
    ev = res.evaluation
    assert ev.r2 > .9 and ev.n == 12 and res.score.value == ev.mae
    text = str(res)
    for words in ('MAE ', 'for always answering', 'RMSE', 'R²', 'Spearman', 'holds 90% of new images', 'predictions stay from', 'brightness'): assert words in text, text
    assert 'accuracy' not in text and 'classes' not in str(res.plan) and 'ridge regression' in str(res.plan) and 'brightness from' in str(res.plan)
    found = json.loads((out/'results.json').read_text())
    assert found['task'] == 'number' and found['evaluation']['mae'] == ev.mae and found['number']['within'] == res.within
    assert found['metric']['value'] == ev.mae


def test_predictions_have_ends_and_are_what_was_measured(run):
    _, out, res = run
    df = pd.read_csv(out/'predictions.csv')
    assert list(df) == ['path', 'split', 'label', 'prediction', 'low', 'high'] and set(df.split) == {'valid', 'test'}
    test = df[df.split == 'test']
    assert evaluate_numbers(test.prediction, test.label).mae == pytest.approx(res.evaluation.mae, rel=1e-4)
    assert np.allclose(df.high - df.prediction, res.within) and np.allclose(df.prediction - df.low, res.within)
    valid = df[df.split == 'valid']
    assert ((valid.low <= valid.label) & (valid.label <= valid.high)).mean() >= .9


def test_predictions_do_not_leave_the_training_range(run):
    table, df = run[2].learn.dls.table, run[2].predictions
    train = table.label[table.split == 'train']
    assert train.min() - 1e-3 <= df.prediction.min() and df.prediction.max() <= train.max() + 1e-3


def test_the_report_has_plots_and_nothing_about_classes(run):
    html = (run[1]/'report.html').read_text()
    for words in ('Predicted against true brightness', 'Residuals', 'Largest errors', 'prediction interval', 'mean absolute error', 'lowest'): assert words in html, words
    for words in ('onfusion', 'top-5', 'calibration', 'accuracy'): assert words not in html, words


def test_the_model_predicts_what_was_measured(run):
    file, out, res = run
    p, df = load_predictor(out), res.predictions
    found = p.predict(df.path.tolist())
    assert list(found) == ['path', 'prediction', 'low', 'high', 'reason']
    assert np.allclose(found.prediction, df.prediction, rtol=1e-6) and np.allclose(found.high, df.high, rtol=1e-6)
    test = df[df.split == 'test']
    ev = p.evaluate(pd.DataFrame(dict(path=test.path, label=test.label)))
    assert ev.mae == pytest.approx(res.evaluation.mae, rel=1e-5)
    for options in (dict(probs=True), dict(coverage=.9), dict(min_precision=.9)):
        with pytest.raises(ValueError, match='is for classes'): p.predict(df.path.tolist()[:1], **options)
    assert 'brightness, ' in str(p.about) and 'holds 90%' in str(p.about) and p.about.classes == ('brightness',)


def test_a_file_that_is_no_image_has_a_reason(run, tmp_path):
    (tmp_path/'bad.png').write_bytes(b'x')
    found = load_predictor(run[1]).predict([str(tmp_path/'bad.png'), run[2].predictions.path[0]])
    assert found.reason[0] and np.isnan(found.prediction[0]) and np.isnan(found.low[0]) and not found.reason[1]


def test_the_weights_open_in_plain_timm(run):
    import timm
    net = timm.create_model(TINY['arch'], num_classes=1).eval()
    net.load_state_dict(load_file(run[1]/'model'/'model.safetensors'))
    p = load_predictor(run[1])
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(o).view(1, 3, 1, 1) for o in (p.about.preprocess.mean, p.about.preprocess.std))
    with torch.no_grad(): theirs = p.task.activation(net((x - mean)/std))
    assert_close(p.task.activation(p.model(x).detach()), theirs, atol=1e-3, rtol=1e-6)


def test_onnx_gives_numbers(run, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    p = load_predictor(run[1], 'cpu')
    export_onnx(p, tmp_path/'m.onnx')
    session = onnxruntime.InferenceSession(tmp_path/'m.onnx')
    assert [o.name for o in session.get_outputs()] == ['number']
    x = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    numbers, = session.run(None, dict(images=x))
    ours = p.task.activation(p.model(torch.from_numpy(x).permute(0, 3, 1, 2).float()/255).detach()).numpy()
    assert np.allclose(numbers, ours, atol=1e-2)
    assert json.loads(session.get_modelmeta().custom_metadata_map['number'])['within'] == pytest.approx(run[2].within)


def test_on_the_command_line(run, capsys):
    file, out, res = run
    assert main(['predict', str(out), res.predictions.path[0]]) == 0
    shown = capsys.readouterr().out
    assert 'low' in shown and '1,0' in shown and len(shown.split()[-1].partition('.')[2]) >= 2   # 1,009.63, not 1,010
    assert main(['predict', str(out), res.predictions.path[0], '--csv']) == 0
    assert capsys.readouterr().out.splitlines()[0] == 'path,prediction,low,high,reason'
    assert main(['evaluate', str(out), str(file)]) == 0
    text = capsys.readouterr().out
    assert 'MAE ' in text and '(90% expected)' in text and 'accuracy' not in text


def test_messages_are_about_numbers(run, tmp_path, capsys):
    "And not about classes"
    file, out, res = run
    assert main(['rule', str(file)]) == 0 and 'brightness from 1,' in capsys.readouterr().out
    assert main(['label-next', str(out), str(file.parent/'images')]) == 2 and 'predicts a number' in capsys.readouterr().err
    assert 'groups' not in str(res) and load_predictor(out).similar([res.predictions.path[0]], n=3).label.str.startswith('1,0').all()
    predictor = load_predictor(out)
    predictor.about = replace(predictor.about, preprocess=replace(predictor.about.preprocess, flip=True))   # so that there are views
    with pytest.warns(DataWarning, match='measured without'): predictor.predict([res.predictions.path[0]], tta=True)


def test_advice_is_drawn_from_the_errors(run):
    res = run[2]
    probs = res.probs.clone()
    probs[3] += 100
    found = {a.kind: a for a in number_steps(res.learn, replace(res.measured, probs=probs), res.settings)}
    assert 'one image' in found['labels'].text and found['labels'].command.startswith('check_data(')
    assert 'labels' not in {a.kind for a in number_steps(res.learn, replace(res.measured, probs=res.targs + 1.), res.settings)}
    assert number_steps(res.learn, replace(res.measured, probs=probs*np.nan), res.settings) == []


def test_check_finds_wrong_numbers_and_copies_with_other_numbers(run, tmp_path):
    df = pd.read_csv(run[0]).assign(file=lambda d: [str(run[0].parent/o) for o in d.file])
    df.loc[3, 'brightness'] *= 10
    (tmp_path/'copy.png').write_bytes((run[0].parent/'images'/'007.png').read_bytes())
    df.loc[60] = [str(tmp_path/'copy.png'), df.brightness[7] + .001]
    found = check_data(df, verbose=False, **TINY)
    assert found.rows[found.rows.kind == 'number'].path.tolist() == [df.file[3]]
    assert (found.rows.kind == 'copy_other_label').sum() == 1 and 'brightness from' in str(found) and 'classes' not in str(found).splitlines()[0]


def test_decimal_commas_are_not_taken_for_labels():
    "1,5 2 3,5 could be lists of digits"
    cells = [f'{v/10:g}'.replace('.', ',') for v in range(10, 70)]*2
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(120)], size=cells))
    with pytest.raises(ValueError, match="task='number'"): read_image_set(df)
    assert read_image_set(df, task='number').table.label.max() == 6.9


def test_what_is_about_classes_refuses_numbers(run):
    assert compare_runs(run[1], run[2]).identical
    found = check_data(run[0], verbose=False, **TINY)
    assert not set(found.rows.kind) & {'few', 'imbalance', 'label', 'groups'} and 'images have numbers' in str(found.unchecked)


# Training

class StopAt(Callback):
    "Ctrl-C after some steps"
    def __init__(self, step): self.step = step
    def after_step(self):
        if self.train_iter == self.step: raise KeyboardInterrupt


def test_one_cycle_trains_and_resumes_to_the_same_weights(run, tmp_path):
    dls = lambda: image_dataloaders(run[0], TINY['arch'], **PX, bs=16)
    def learner():
        torch.manual_seed(0)
        learn = transfer_learner(dls(), **TINY)
        learn.unfreeze()
        return learn
    straight, stopped, resumed = learner(), learner(), learner()
    with straight.no_logging(), straight.no_bar(): straight.fit_one_cycle(2, 1e-3)
    file = tmp_path/'run.safetensors'
    with stopped.no_logging(), stopped.no_bar(), pytest.raises(KeyboardInterrupt): stopped.fit_one_cycle(2, 1e-3, checkpoint=file, checkpoint_every=1, cbs=StopAt(4))
    with resumed.no_logging(), resumed.no_bar(): resumed.fit_one_cycle(2, 1e-3, checkpoint=file, checkpoint_every=1)
    for a, b in zip(straight.model.parameters(), resumed.model.parameters()): assert torch.equal(a, b)
    assert [m.name for m in straight.metrics] == ['mae'] and isinstance(straight.loss_func, NumberLoss)


def test_the_head_is_ridge_regression_on_features(run):
    learn = transfer_learner(image_dataloaders(run[0], TINY['arch'], **PX, **{k: PLAIN[k] for k in ('flip', 'crop')}), **TINY)
    before = learn.evaluate(show=False)
    assert before.r2 < .1   # the mean of the training images for all
    with learn.no_logging(): learn.fit_head(solver='lbfgs')
    assert learn.evaluate(show=False).r2 > .9
    assert learn.prediction_interval() == learn.within < learn.task.scale.std
    assert 'Largest errors' in str(learn.report())
    with pytest.raises(ValueError, match='for classes'): learn.calibrate()


@pytest.mark.parametrize('recipe', ['onecycle', 'auto'])
def test_other_recipes(run, recipe):
    more = dict(epochs=2) if recipe == 'onecycle' else dict(n_steps=4)
    res = baseline(run[0], **TINY, **PX, recipe=recipe, verbose=False, keep_best='metric', **more)
    assert res.evaluation.r2 > .5 and 'mae' in res.epochs


def test_loaders_of_fastai(run):
    df = pd.read_csv(run[0])
    block = DataBlock((ImageBlock, RegressionBlock), get_x=ColReader('file', pref=f'{run[0].parent}/'), get_y=ColReader('brightness'), splitter=RandomSplitter(.2, seed=0), item_tfms=Resize(32))
    learn = transfer_learner(block.dataloaders(df, bs=16, num_workers=0), **TINY)
    numbers = df.brightness[[i for i in range(60) if i in set(learn.dls.train_ds.items.index)]]
    assert learn.task.scale.mean == pytest.approx(numbers.mean(), rel=1e-6)
    with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(1, 1e-2)
    assert learn.evaluate(show=False).n == 12


def test_grades_are_measured_by_kappa_and_rounded(tmp_path):
    file = write_table(tmp_path/'grades', 40, np.repeat([40, 90, 140, 190], 10).astype(float))
    df = pd.read_csv(file).assign(grade=lambda d: 1 + ((d.brightness - 1004)/5).round().astype(int)).drop(columns='brightness')
    res = baseline(df, root=file.parent, **TINY, **PX, **PLAIN, recipe='head', task='number', out=tmp_path/'run')
    assert res.evaluation.quadratic_kappa > .8 and 'quadratic-weighted kappa' in str(res) and 'exact when rounded' in str(res) and 'stay from 1 to 4' in str(res)
    saved = pd.read_csv(tmp_path/'run'/'predictions.csv')
    assert (saved.level == saved.prediction.round()).all() and 'predicted level, rounded' in (tmp_path/'run'/'report.html').read_text()
    found = load_predictor(tmp_path/'run').predict([saved.path[0], tmp_path/'none.png'])
    assert found.level.tolist() == [str(saved.level[0]), ''] and list(found) == ['path', 'prediction', 'level', 'low', 'high', 'reason']
    about = json.loads((tmp_path/'run'/'model'/'config.json').read_text())
    assert about['fastbit']['number']['levels'] == ['0', '1', '2', '3', '4']
    del about['fastbit']['number']['levels']   # as models have it that were saved before
    (tmp_path/'run'/'model'/'config.json').write_text(json.dumps(about))
    assert 'level' not in load_predictor(tmp_path/'run').predict([saved.path[0]])


def test_ordered_classes_are_predicted_as_a_number_and_named(tmp_path, capsys):
    file = write_table(tmp_path/'levels', 40, np.repeat([40, 90, 140, 190], 10).astype(float))
    names = np.array(['none', 'mild', 'severe', 'fatal'])   # not the order of the alphabet
    df = pd.read_csv(file).assign(stage=lambda d: names[((d.brightness - 1004)/5).round().astype(int)]).drop(columns='brightness')
    df.to_csv(file, index=False)
    order = 'none,mild,severe,fatal'
    res = baseline(file, **TINY, **PX, **PLAIN, recipe='head', order=order, out=tmp_path/'run')
    assert res.evaluation.quadratic_kappa > .8 and 'stay from none to fatal' in str(res) and 'stage from none to fatal' in str(res.plan)
    assert json.loads((tmp_path/'run'/'results.json').read_text())['settings']['order'] == order
    predictor = load_predictor(tmp_path/'run')
    assert predictor.order == tuple(order.split(','))
    found = predictor.predict(res.predictions.path.tolist())
    assert found.level.tolist() == [names[round(float(n))] for n in found.prediction] and len(set(found.level)) > 1
    with pytest.warns(DataWarning, match='32 of these 40'): assert predictor.evaluate(file).quadratic_kappa > .8   # the file has names, and the model their order
    page = (tmp_path/'run'/'report.html').read_text()
    assert 'fatal' in page and 'Compared with 32 training images' in page
    assert set(predictor.similar([res.predictions.path[0]], n=2).label) <= set(names)
    with warnings.catch_warnings():
        warnings.simplefilter('always')   # the command prints them
        assert main(['evaluate', str(tmp_path/'run'), str(file), '--all']) == 0
    shown = capsys.readouterr()
    assert 'quadratic-weighted kappa' in shown.out and '32 of these 40' in shown.err
    check_error('fatal missing', file, order='none,mild,severe')
    check_error("leave task='labels' out", file, order=order, task='labels')
    assert main(['rule', str(file), '--order', order]) == 0 and 'stage from none to fatal' in capsys.readouterr().out
