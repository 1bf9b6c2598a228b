"Arguments that other libraries have, and data in other forms: each is refused with what to write, before any work"
import io, warnings
from functools import partial

import matplotlib, matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.mixup import CutMix, MixUp
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.load import DataLoader
from fastai.interpret import ClassificationInterpretation
from fastai.metrics import F1Score, RocAuc, accuracy, accuracy_multi, error_rate, top_k_accuracy
from fastai.vision.data import ImageDataLoaders
from fastcore.foundation import L
from torchvision.models import efficientnet_b0, resnet34

from fastbit.baseline import baseline
from fastbit.cli.command import main
from fastbit.data import image_dataloaders
from fastbit.report import plot_confusion, plot_lr_find
from fastbit.report.figures import drawable
from fastbit.core.fonts import fallback_fonts, missing_characters
from fastbit.training import transfer_learner
from fastbit.bodies import timm_name
from conftest import TINY, write_folder

SCRIPT = '\U0001D49C\U0001D49E'   # mathematical letters: not in matplotlib's usual font, but in others that come with it


@pytest.fixture
def dls(folder): return image_dataloaders(folder, 'test_efficientnet', size=32, bs=8, num_workers=0)


@pytest.fixture
def learn(dls):
    learn = transfer_learner(dls, **TINY)
    with learn.no_logging(), learn.no_bar(): yield learn
    plt.close('all')


# --- arguments

@pytest.mark.parametrize('given, words', [(dict(n=4), 'has no argument n. .*identity'),
    (dict(beta=.4), 'same weight'), (dict(item_tfms=[]), 'views='), (dict(use_max=True), 'mean'),
    (dict(view='hflip'), r'Did you mean views\?'), (dict(steps=3), 'It has ds_idx, dl, views, show')])
def test_fastais_tta(learn, given, words):
    with pytest.raises(TypeError, match=rf'learn.tta\(\) .*{words}'): learn.tta(**given)


def test_views_are_names(learn):
    for views in (4, 1.5, dict(n=4)):
        with pytest.raises(TypeError, match='names of views'): learn.tta(views=views)
    with pytest.raises(TypeError, match='names of views'): learn.tta(1, None, 4)


@pytest.mark.parametrize('given, words', [
    (dict(pretrained=True), "weights='auto'"), (dict(normalize=False), "its body's mean and std"),
    (dict(cut=-2), 'stages'), (dict(splitter=len), 'parameter group'), (dict(y_range=(0, 1)), 'range of the training images'),
    (dict(n_in=1), 'three channels'), (dict(custom_head=1), 'drop_rate='), (dict(ps=.5), 'drop_rate='),
    (dict(batch_size=8), 'image_dataloaders as bs='), (dict(num_classes=3), 'n_out='),
    (dict(metric=accuracy), r'Did you mean metrics\?'),
    (dict(loss=accuracy), 'loss_func='), (dict(drop_path=.1), r'Did you mean drop_path_rate\?'),
    (dict(whatever=1), 'It has dls, arch')])
def test_arguments_of_vision_learner_and_others(dls, given, words):
    with pytest.raises(TypeError, match=rf'(?s)transfer_learner\(\) has no argument {next(iter(given))}.*{words}'): transfer_learner(dls, **TINY, **given)


def test_loaders_are_what_a_learner_takes(folder):
    for given, words in ((str(folder), r"transfer_learner\(image_dataloaders\('.*data'\)\)"),
            (folder, 'image_dataloaders'), (pd.DataFrame(), 'not a DataFrame'),
            (DataBlock(), r'block.dataloaders\(path\)'),
                         (ImageDataLoaders, 'not a ImageDataLoaders'), (None, 'NoneType'), ([1], 'a list')):
        with pytest.raises(TypeError, match=words): transfer_learner(given, **TINY)


@pytest.mark.parametrize('arch, words', [
    ('resnet3A', 'resnet34'), ('ResNet-50', 'Did you mean resnet50?'), ('ConvNeXt-Tiny', 'Did you mean convnext_tiny?'),
    ('vit_b_16', "torchvision's vit_b_16 is timm's vit_base_patch16_224: arch='vit_base_patch16_224'"),
    ('tf_efficientnet_b0_ns', "arch='tf_efficientnet_b0.ns_jft_in1k'"),
    ('EfficientNetB0', 'Did you mean efficientnet_b0?'), ('efficientnet-b3', 'Did you mean efficientnet_b3?'),
    ('BiT-M-50x1', 'BiT-M-R50x1'), ('xyz', 'list_bodies')])
def test_names_of_other_bodies(arch, words):
    with pytest.raises(ValueError) as e: timm_name(arch)
    assert 'is not the name of a timm model' in str(e.value) and words in str(e.value)


@pytest.mark.parametrize('arch, words', [(resnet34, "the function resnet34.*Write its name: arch='resnet34'"),
    (efficientnet_b0, "Write its name: arch='efficientnet_b0'"), (torch.nn.Linear(2, 2), 'a Linear'),
    (torch.nn.Linear, 'the class Linear'), (None, 'NoneType')])
def test_a_body_is_a_name(dls, arch, words):
    with pytest.raises(TypeError, match=words): transfer_learner(dls, arch)


def test_on_the_command_line_it_is_one_line(folder, capsys):
    assert main(['baseline', str(folder), '--arch', 'vit_b_16']) == 2
    assert "timm's vit_base_patch16_224: --arch vit_base_patch16_224" in capsys.readouterr().err


# --- metrics

@pytest.mark.parametrize('metrics, words', [
    (top_k_accuracy, r'k=5 is more than the 3 classes. Use partial\(top_k_accuracy, k=2\)'),
    ([accuracy, partial(top_k_accuracy, k=4)], 'k=4 is more'), (F1Score(), 'average'),
    (accuracy_multi, 'accuracy_multi')])
def test_metrics_that_three_classes_do_not_have(dls, metrics, words):
    "They failed after the first epoch"
    with pytest.raises(ValueError, match=words): transfer_learner(dls, **TINY, metrics=metrics)
    learn = transfer_learner(dls, **TINY)
    learn.metrics = metrics
    with learn.no_logging(), learn.no_bar(), pytest.raises(ValueError, match=words): learn.fit_one_cycle(1)
    assert not learn.history.rows


def test_metrics_that_they_have(dls):
    mine = lambda p, t: 1/0   # is not tried
    transfer_learner(dls, **TINY, metrics=[accuracy, error_rate, partial(top_k_accuracy, k=2),
            F1Score(average='macro'), RocAuc(), mine])
    transfer_learner(dls, **TINY, metrics=None)
    with pytest.raises(TypeError, match="metrics='accuracy'; give the function itself, such as metrics=accuracy"): transfer_learner(dls, **TINY, metrics='accuracy')


# --- data

@pytest.mark.parametrize('source, words', [
    (['a.png', 'b.png'], r'A list of paths has no labels.*pd.DataFrame\(dict\(path=paths, label=labels\)\)'),
    (L('a.png'), 'A L of paths has no labels'), (np.array(['a.png']), 'A ndarray of paths'),
    ((p for p in ['a.png']), 'A generator of paths'),
    ([('a.png', 'cat')], r"pd.DataFrame\(rows, columns=\['path', 'label'\]\)"),
    (np.array([['a.png', 'cat']]), 'rows, columns'), (dict(path=['a'], label=['b']), r'pd.DataFrame\(d\)'),
    ({'a.png': 'cat'}, r'd.items\(\), columns='),
    (b'photos', 'os.fsdecode'), (3, 'a folder, a CSV file or a DataFrame'),
    (pd.Series(['a.png']), 'A Series of paths'), (DataBlock(), 'DataBlock makes them')],
    ids=lambda o: o if isinstance(o, str) else type(o).__name__)
def test_data_in_other_forms(source, words):
    with pytest.raises(TypeError, match=words): image_dataloaders(source)
    with pytest.raises(TypeError, match=words): baseline(source, verbose=False)


def test_no_data_at_all():
    with pytest.raises(TypeError, match='path is None; .*one folder per class'): image_dataloaders(None)


# --- plots of the recorder

def lines(): return [len(line.get_xdata()) for line in plt.gca().lines]


def test_the_last_curve_can_be_drawn_again(learn):
    "The habit of fastai's older course; after a fit or a prediction it drew another curve, or none"
    with pytest.raises(ValueError, match='run learn.lr_find'): learn.recorder.plot_lr_find()
    with pytest.raises(ValueError, match='run a fit first'): learn.recorder.plot_loss()
    learn.lr_find(num_it=25, show_plot=False)
    learn.recorder.plot_loss()   # was an IndexError
    learn.recorder.plot_lr_find()
    assert lines()[0] == 20
    plt.close('all')
    learn.evaluate(show=False); learn.fit_one_cycle(2)
    learn.recorder.plot_lr_find(skip_end=0)
    assert lines()[0] == 25
    plt.close('all')
    learn.get_preds(); learn.lr_find(num_it=20, show_plot=False)
    learn.recorder.plot_loss(skip_start=0)
    assert lines() == [8, 2]   # of the fit
    learn.recorder.plot_lr_find()
    assert lines()[0] == 15


# --- BatchNorm and a last batch of one

@pytest.mark.parametrize('start', [
    lambda learn: learn.fit_one_cycle(1, 1e-3), lambda learn: learn.lr_find(num_it=20),
    lambda learn: learn.fine_tune(1, freeze_epochs=1), lambda learn: (learn.freeze_to(4), learn.fit_head(1)),
    lambda learn: learn.fit_hyperrule(batch_size=1, show=False)])
def test_batchnorm_that_trains_on_one_image_is_refused_before_the_first_step(make_folder, start):
    "torch: Expected more than 1 value per channel when training"
    dls = image_dataloaders(make_folder(dict(a=11, b=10)), 'test_efficientnet', size=32, bs=4,
            num_workers=0)   # 17 to train
    assert dls.train.n % 4 == 1
    learn = transfer_learner(dls, **TINY, bn='train')
    learn.unfreeze()
    with learn.no_logging(), learn.no_bar():
        with pytest.raises(ValueError, match=r"bn='train' and .*of one image.*Use (bs=3|larger batches) or bn='frozen'"): start(learn)
    assert not [r for r in learn.history.rows if r['phase'] != 'head']


def test_batchnorm_that_trains_on_more_is_fine(make_folder):
    folder = make_folder(dict(a=11, b=10))
    for bs, bn, size in ((3, 'train', 32), (4, 'affine', 32),
            (4, 'train', 64)):   # 17 = 5*3 + 2; at 64 px the last maps have four numbers
        learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=size, bs=bs, num_workers=0),
                **TINY, bn=bn)
        learn.unfreeze()
        with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(1, 1e-3)


def test_a_baseline_is_refused_before_anything_is_trained(make_folder):
    with pytest.raises(ValueError, match='a last batch of one image'):
        baseline(make_folder(dict(a=11, b=10)), size=32, bs=4, bn='train', num_workers=0, recipe='onecycle', epochs=2, verbose=False,
                dry_run=True, **TINY)


# --- class names in other scripts

def test_fonts_are_found_for_what_the_usual_one_lacks():
    assert missing_characters(['cat', 'Ärger', 'рыба', '×']) == set() and missing_characters([SCRIPT]) == set(SCRIPT)
    assert len(fallback_fonts(set(SCRIPT))) == 1 and fallback_fonts({'\U0010FFFD'}) == []
    assert drawable(['cat', SCRIPT, 'a'*30]) == ['cat', SCRIPT,
            'a'*17 + '…'] and drawable(['cat', 'x\U000FFFFD']) == ['cat', 'no. 2']


def test_class_names_in_any_script(tmp_path):
    "Figures of fastai and of fastbit, without matplotlib's warnings"
    names = [SCRIPT, '猫', '🐈']
    with matplotlib.rc_context():
        dls = image_dataloaders(write_folder(tmp_path/'data', {n: 6 for n in names}), 'test_efficientnet', size=32,
                bs=4, num_workers=0)
        learn = transfer_learner(dls, **TINY)
        with learn.no_logging(), learn.no_bar(): learn.fit(1)
        dls.show_batch(); learn.show_results()
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_confusion_matrix(); interp.plot_top_losses(2)
        for i in plt.get_fignums(): plt.figure(i).canvas.draw()
        plt.close('all')
        html = str(learn.report())
        assert all(n in html for n in names)
        if missing_characters(['猫']): assert 'no. ' in html and ': 猫' in html


def test_ordinary_class_names_leave_matplotlib_alone(folder):
    before, n = list(matplotlib.rcParams['font.family']), len(warnings.filters)
    transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, num_workers=0), **TINY)
    assert matplotlib.rcParams['font.family'] == before and len(warnings.filters) == n


def test_labels_of_a_figure_are_drawn_in_their_font():
    fig = plot_confusion(np.eye(2, dtype=int), ['cat', SCRIPT])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig.savefig(io.BytesIO(), format='png')


# --- loaders and callbacks

def test_what_is_measured_is_a_loader(learn, folder):
    for method in (learn.evaluate, learn.tta, learn.calibrate):
        with pytest.raises(TypeError, match=r'dl is a \w*Path; .*test_dl'): method(dl=folder)
        with pytest.raises(TypeError, match='give one of its loaders'): method(dl=learn.dls)
        with pytest.raises(TypeError, match='ds_idx is a .*dl='): method(folder)
    for method in (learn.evaluate, learn.tta, learn.calibrate, learn.report):
        with pytest.raises(ValueError, match='ds_idx=2.*2 loaders.*test_pct'): method(2)


def torch_sets():
    make = lambda n: torch.utils.data.TensorDataset(torch.rand(n, 3, 32, 32), torch.arange(n) % 3)
    return make(12), make(6)


def test_loaders_of_torch():
    loaders = [torch.utils.data.DataLoader(ds, batch_size=4) for ds in torch_sets()]
    with pytest.raises(TypeError, match='from_dsets'): transfer_learner(tuple(loaders), **TINY)
    with pytest.raises(TypeError, match='from_dsets'): transfer_learner(DataLoaders(*loaders), **TINY, n_out=3)


@pytest.mark.parametrize('kind', [TfmdDL, DataLoader])
def test_data_sets_of_torch_train_and_are_measured(kind):
    dls = DataLoaders.from_dsets(*torch_sets(), bs=4, dl_type=kind, num_workers=0, device='cpu')
    learn = transfer_learner(dls, **TINY, n_out=3)
    with learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit_head(1)
        learn.fit(1, 1e-3)
        assert learn.evaluate(show=False).n == 6


def test_fit_head_refuses_what_it_would_drop(learn):
    with pytest.raises(ValueError, match='CutMix needs images'): learn.fit_head(1, cbs=CutMix())
    with pytest.raises(ValueError, match='omit n_epoch, lr, cbs'):
        learn.fit_head(5, 1e-2, solver='lbfgs', cbs=MixUp())


def test_dollars_in_class_names_begin_no_formula(tmp_path):
    names = ['$x^{$', 'US$']
    fig = plot_confusion(np.eye(2, dtype=int), names)   # also without a learner
    fig.savefig(io.BytesIO())
    with matplotlib.rc_context():
        dls = image_dataloaders(write_folder(tmp_path/'data', {n: 6 for n in names}), 'test_efficientnet', size=32,
                bs=4, num_workers=0)
        learn = transfer_learner(dls, **TINY)
        with learn.no_logging(), learn.no_bar(): learn.fit(1)
        learn.show_results()
        ClassificationInterpretation.from_learner(learn).plot_confusion_matrix()
        for i in plt.get_fignums(): plt.figure(i).canvas.draw()
        plt.close('all')
        assert '$x^{$' in str(learn.report())
        fig = plot_lr_find([1e-4, 1e-3, 1e-2], [2., 1., 3.])
        fig.canvas.draw()
        assert not any('$' in t.get_text() for t in fig.axes[0].get_xticklabels(which='both'))
