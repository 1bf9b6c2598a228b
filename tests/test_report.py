"The report in a real browser, and what a run says about itself"
import json, re

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.metrics import accuracy
from fastai.vision.data import ImageDataLoaders
from fastai.vision.augment import Resize

import fastbit.baseline.result as module
from fastbit.baseline import baseline, Run
from fastbit.data import image_dataloaders
from fastbit.report.headline import interval_words
from fastbit.training import transfer_learner, tta_probs
from conftest import TINY, look_at, picture

small = dict(TINY, size=32, num_workers=0, recipe='onecycle', epochs=2, verbose=False)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run with a test set, on classes and files with names that a page could trip over"
    root = tmp_path_factory.mktemp('data')
    for k, label in enumerate(['blue & <i>grey', 'green', "red's"]):
        (root/label).mkdir()
        for i in range(14): picture(i, k + (i % 4 == 0)).save(root/label/f'<b>{i}&.png')   # a quarter looks like another class
    (root/'green'/'broken.png').write_bytes(b'no image')
    out = tmp_path_factory.mktemp('out')/'run'
    with pytest.warns(UserWarning, match='cannot be read'): res = baseline(root, test_pct=.2, keep_best='valid_loss', out=out, **small | dict(size=48))   # maps of four positions
    return res, out


@pytest.mark.parametrize('width', [1200, 390])
def test_the_page_in_a_browser(run, width):
    seen = look_at(run[1]/'report.html', width)
    assert (seen['errors'], seen['broken'], seen['requests']) == ([], [], []) and seen['pictures'] > 15
    assert seen['too_wide'] <= 0   # nothing to scroll sideways on a phone
    assert {'Learning rates and times', 'Command, plan, result as printed, weights, machine and versions'} <= set(seen['folded'])
    for word in ('Between ', ' of new images like these will be classified correctly', 'always answering', 'recall of the worst class', 'What would help', 'Highest-loss images', 'Class activation maps', 'Learning rate', 'Skipped files', 'broken.png', 'not an image that Pillow can read', 'blue & <i>grey', 'BLAKE2b', 'Test-time augmentation', 'measured limit'): assert word in seen['text'], word


def test_the_page_is_self_contained_and_escaped(run):
    html = (run[1]/'report.html').read_text()
    assert '<script' not in html and not re.search(r'(src|href)="(?!data:|#)', html)
    assert '<i>grey' not in html and '<b>1' not in html
    assert all('alt="' in tag and 'alt=""' not in tag for tag in re.findall(r'<img[^>]*>', html))
    assert html == run[0].report().html or run[0].report().html.count('<img') == html.count('<img')   # shown inline: the same page, but for the minute


def test_the_test_set_is_what_is_reported(run):
    res, out = run
    assert res.part == 'test' and res.evaluation.n == 8 and res.validation.n == 8
    rows = pd.read_csv(out/'predictions.csv')
    assert rows.split.value_counts().to_dict() == dict(valid=8, test=8)
    test = rows[rows.split == 'test']
    assert (test.label == test.prediction).mean() == res.evaluation.accuracy
    held = json.loads((out/'results.json').read_text())
    assert held['part'] == 'test' and held['temperature'] == res.temperature and held['validation']['n'] == 8
    assert 'on the validation images' in str(res) and 'optimistic' not in str(res)
    assert 'these same images' not in (out/'report.html').read_text()


def test_the_test_set_is_touched_once(folder, monkeypatch):
    "No image of it is read before the last stage has ended, and the temperature does not know it"
    calls = []
    monkeypatch.setattr(module, 'tta_probs', lambda learn, dl, *a: (calls.append([str(p) for p in dl.items]), tta_probs(learn, dl, *a))[1])
    real = Run.train
    monkeypatch.setattr(Run, 'train', lambda run, *a: (real(run, *a), calls.append('trained'))[0])
    fitted = []
    monkeypatch.setattr(module, 'fit_temperature', lambda logits, targs, groups=None: (fitted.append(logits), 1.5)[1])
    res = baseline(folder, test_pct=.2, **small)
    table = res.learn.dls.table
    test = set(table.path[table.split == 'test'])
    assert [c if isinstance(c, str) else bool(test & set(c)) for c in calls] == ['trained', False, True]
    valid, test = (res.learn.get_preds(dl=dl)[0] for dl in res.learn.dls.loaders[1:])
    assert res.temperature == 1.5 and torch.allclose(fitted[0].softmax(1), valid, atol=1e-6) and not torch.allclose(fitted[0].softmax(1), test, atol=1e-6)


def test_what_was_chosen_on_the_reported_images_is_said(folder, tmp_path):
    res = baseline(folder, keep_best='valid_loss', out=tmp_path/'run', **small)
    assert res.part == 'valid' and res.validation is None and 'slightly optimistic' in str(res)
    assert 'these same images, so the numbers are slightly optimistic' in (tmp_path/'run'/'report.html').read_text()
    plain = baseline(folder, **small)
    assert 'not used for training or for choosing weights' in plain.report().html


def test_the_command_is_what_to_type(run, folder):
    assert run[0].command.startswith('baseline(') and "keep_best='valid_loss'" in run[0].command and 'test_pct=0.2' in run[0].command
    assert 'seed=' not in run[0].command   # only what differs from the defaults


def test_a_report_of_a_learner_trained_by_hand(folder):
    learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, num_workers=0), **TINY, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    learn.calibrate()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    html = learn.report().html
    assert 'Highest-loss images' in html and f'{learn.temperature:.2f}' in html and all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


@pytest.mark.filterwarnings('ignore::DeprecationWarning')   # of torch.save in fastai's SaveModelCallback, with the optimizer's numbers of numpy
def test_a_report_names_what_callbacks_of_the_last_fit_chose(folder, tmp_path):
    from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
    from fastbit.training import KeepBest
    learn = transfer_learner(image_dataloaders(folder, TINY['arch'], size=32, num_workers=0), **TINY, path=tmp_path)
    unused = 'not used for training or for choosing weights'
    with learn.no_bar(), learn.no_logging():
        for cbs, words in ((KeepBest(), 'were chosen by valid_loss'), (SaveModelCallback(), 'The weights were chosen by valid_loss'),
                           (EarlyStoppingCallback(), 'The number of epochs was chosen by valid_loss'), ([], ''), (SaveModelCallback(every_epoch=True), '')):
            learn.fit(1, 1e-3, cbs=cbs)
            learn.lr_find(num_it=20, show_plot=False)   # chooses no weights, and leaves what was chosen
            page = learn.report().html
            assert (words in page and unused not in page) if words else (unused in page and 'chosen by' not in page), words
        learn.add_cb(KeepBest())
        learn.fit(1, 1e-3)
        assert 'were chosen by valid_loss' in learn.report().html


def test_a_report_on_loaders_that_fastbit_did_not_make(folder):
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.3, item_tfms=Resize(32), bs=8, num_workers=0, seed=0)
    learn = transfer_learner(dls, **TINY, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    html = learn.report().html
    assert 'Highest-loss images' in html and 'Class activation maps' not in html   # how these were cropped is not known


def test_a_run_that_diverged_is_reported_too(folder):
    class Break(Callback):
        def after_fit(self):
            if not hasattr(self.learn, 'lr_finder') and not hasattr(self.learn, 'gather_preds'): self.model.net.classifier.weight.data.fill_(float('nan'))
    learn = transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, num_workers=0), **TINY, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, cbs=Break())
    with pytest.raises(ValueError, match='not finite'): learn.calibrate()
    with pytest.raises(ValueError, match='not finite'): learn.report()


def test_the_rate_finder_of_the_report_changes_nothing(folder):
    one, two = (transfer_learner(image_dataloaders(folder, 'test_efficientnet', size=32, num_workers=0), **TINY) for _ in range(2))
    two.model.load_state_dict(one.model.state_dict())
    for learn, find in ((one, False), (two, True)):
        torch.manual_seed(0); np.random.seed(0)
        with learn.no_bar(), learn.no_logging(): learn.fit_head(3, find_lr=find)
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values()))
    assert one.history.steps.equals(two.history.steps) and two.rate_curve is not None


@pytest.fixture(scope='module')
def folds(tmp_path_factory):
    "The text of the report of three folds of a table with patients, whose headline is the balanced accuracy, and the run"
    root = tmp_path_factory.mktemp('folds')
    rows = []
    for label, n in (('ill', 9), ('well', 18)):
        for i in range(n):
            picture(i, 2*(label == 'well') + (i % 4 == 0)).save(root/f'{label}{i}.png')
            rows.append(dict(image=f'{label}{i}.png', label=label, patient=f'{label}{i//3}'))
    pd.DataFrame(rows).to_csv(root/'labels.csv', index=False)
    res = baseline(root/'labels.csv', **small | dict(recipe='head', epochs=None), group_col='patient', folds=3, metric='balanced_accuracy', out=root/'run')
    page = re.sub(r'<style.*?</style>|<[^>]+>', ' ', (root/'run'/'report.html').read_text(), flags=re.S)
    return res, ' '.join(page.split())


def test_the_first_lines_are_about_the_headline(folds):
    "The interval of the balanced accuracy, not that of the accuracy, and what always answering one class scores by it"
    res, page = folds
    low, high = res.evaluation.score('balanced_accuracy').interval
    assert f'Between {interval_words(low, high, " and ")} of images of new groups' in page and 'will be classified correctly if all classes count alike' in page
    assert 'always answering “well”, the most frequent class, has a balanced accuracy of 50.0% (accuracy 66.7%)' in page


def test_a_report_of_folds_counts_each_image_once(folds):
    "The first fold's 18 training and 9 validation images are not the run's"
    res, page = folds
    data = page[page.index(' Data class '):page.index('Skipped files')]
    assert 'class images ill 9 well 18 all 27' in data and 'held out once, in one of 3 folds; the other 2 models' in data
    assert 'training images precision' not in page
    assert 'by 3-fold cross-validation: stratified, seed 0, 9 groups' in page
    assert '27 images, 2 classes; each held out once in 3 folds' in res.plan.short() and 'each held out once (3 folds, stratified' in str(res.plan)


def test_a_report_explains_what_images_of_groups_are_worth(folds):
    page = folds[1]
    worth = re.search(r'9 groups, 3 folds: worth (\d+) independent images', page)[1]
    assert f'as precisely as {worth} independent images would' in page and 'models of several folds share training images' in page
