"When not to answer, from a run to its files, the command, ONNX and the report"
import io, json, os, re, shutil

import numpy as np, pandas as pd, pytest, timm, torch
from safetensors.torch import load_file, save_file

from fastbit.baseline import baseline
from fastbit.cli.command import main
from fastbit.export import Predictor, export_onnx, load_predictor, save_artifact
from fastbit.export.abstain import ANSWERS
from fastbit.export.artifact import CONFIG
from fastbit.metrics import HeldOutAnswers, fit_feature_gaussian
from conftest import TINY, look_at, picture, write_folder
from test_artifact import GOLDEN, about_net, set_own, some_net


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "(folder of the results, images, result) with a test set; the classes are colors, so half of the answers are right"
    root = tmp_path_factory.mktemp('unsure')
    os.environ['FASTBIT_CACHE'] = str(root/'cache')
    data = write_folder(root/'data', dict(blue=60, green=60, red=60))
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv('FASTBIT_CACHE', str(root/'cache'))
        res = baseline(data, **TINY, recipe='head', size=32, test_pct=.2, valid_pct=.4, device='cpu', num_workers=0, out=root/'out', verbose=False)
    return root/'out', data, res


@pytest.fixture
def model(run, tmp_path): return shutil.copytree(run[0]/'model', tmp_path/'model')


def some_answers(n=40, features=None, directions=3):
    "Of which the four least confident are wrong"
    rng = np.random.default_rng(0)
    gaussian = distance = None
    if features:
        gaussian = fit_feature_gaussian(rng.normal(size=(60, features)) + 1, directions)
        distance = gaussian.distances(rng.normal(size=(n, features)) + 1)
    confidence = np.sort(rng.random(n))[::-1]
    return HeldOutAnswers(confidence, np.arange(n) < n - 4, confidence, gaussian=gaussian, distance=distance)


# files

def test_a_run_keeps_its_validation_answers(run):
    "Those of predictions.csv: any precision can be asked for later"
    out, _, res = run
    table = pd.read_csv(out/'predictions.csv').query('split == "valid"')
    kept = load_predictor(out, 'cpu').answers
    assert kept.n == len(table) == 72 and kept.distance.shape == (72,)
    assert np.abs(kept.confidence - table.calibrated).max() < 1e-6 and (kept.right == (table.label == table.prediction)).all()
    for wanted in (.5, .6, .9): assert kept.precision(wanted) == res.answers.precision(wanted)
    assert (kept.true_prob <= kept.confidence + 1e-7).all() and (kept.true_prob == kept.confidence)[kept.right].all()


def test_timm_still_opens_the_folder(model, run):
    assert (model/ANSWERS).exists()
    theirs = timm.create_model(f'local-dir:{model}', pretrained=True).eval()
    assert all(torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), run[2].learn.model.net.state_dict().values()))


def test_the_file_is_small_and_has_no_training_image(model, run):
    n_features, k = run[2].learn.model.net.num_features, len(load_predictor(model, 'cpu').answers.gaussian.variances)
    shapes = {name: tuple(t.shape) for name, t in load_file(model/ANSWERS).items()}
    assert shapes == dict(confidence=(72,), right=(72,), true_prob=(72,), distance=(72,), center=(n_features,), directions=(n_features, k), variances=(k,), rest=(1,))


def test_without_the_file_the_model_predicts(model, run):
    (model/ANSWERS).unlink()
    p = load_predictor(model, 'cpu')
    assert len(p.predict(picture(0, 0))) == 1
    with pytest.raises(ValueError, match='min_precision=0.5: this model has no answers on validation images'): p.predict(picture(0, 0), min_precision=.5)


def test_a_later_export_without_answers_removes_them(tmp_path):
    save_artifact(tmp_path/'model', some_net(), about_net(), answers=some_answers())
    save_artifact(tmp_path/'model', some_net(), about_net(), overwrite=True)
    assert sorted(f.name for f in (tmp_path/'model').iterdir()) == ['README.md', CONFIG, 'model.safetensors'] and load_predictor(tmp_path/'model', 'cpu').answers is None


def test_a_run_is_replaced_with_its_answers(run, tmp_path):
    from fastbit.baseline.settings import clear_run
    out = shutil.copytree(run[0], tmp_path/'out')
    clear_run(out)
    assert not (out/'model').exists()


def spoil_tensors(folder, change, digest=True):
    "Change the tensors, and the record's digest with them"
    import hashlib
    tensors = load_file(folder/ANSWERS)
    tensors = change(tensors) or tensors
    save_file(tensors, folder/ANSWERS)
    if digest: set_summary(folder, sha256=hashlib.sha256((folder/ANSWERS).read_bytes()).hexdigest())


def set_summary(folder, **values):
    old = json.loads((folder/CONFIG).read_text())['fastbit']['abstain']
    set_own(folder, abstain=old | values)


def replaced(**tensors): return lambda t: t.update(tensors)


HOSTILE = {
    'one bit': (lambda d: (d/ANSWERS).write_bytes((b := bytearray((d/ANSWERS).read_bytes()), b.__setitem__(-5, b[-5] ^ 1))[0]), 'SHA-256 is not the one'),
    'cut short': (lambda d: (d/ANSWERS).write_bytes((d/ANSWERS).read_bytes()[:-9]), 'not a safetensors file'),
    'a pickle': (lambda d: torch.save({'a': 1}, d/ANSWERS), 'not a safetensors file'),
    'a terabyte of nothing': (lambda d: os.truncate(d/ANSWERS, 2**40), 'can have .* at most'),
    'a pipe': (lambda d: ((d/ANSWERS).unlink(), os.mkfifo(d/ANSWERS)), 'not a regular file'),
    'a tensor too many': (lambda d: spoil_tensors(d, replaced(**{'../../etc/passwd': torch.zeros(1)})), '1 tensors are not of this record'),
    'a tensor too few': (lambda d: spoil_tensors(d, lambda t: {k: v for k, v in t.items() if k != 'rest'}), '1 tensors are missing, e.g. rest'),
    'another shape': (lambda d: spoil_tensors(d, replaced(center=torch.zeros(3))), r'center is F32 of shape \[3\]'),
    'another type': (lambda d: spoil_tensors(d, replaced(right=torch.zeros(72))), 'right is F32'),
    'a confidence that is none': (lambda d: spoil_tensors(d, replaced(confidence=torch.full((72,), float('nan')))), 'confidence must be numbers from 0 to 1'),
    'a confidence of two': (lambda d: spoil_tensors(d, replaced(confidence=torch.full((72,), 2.))), 'confidence must be numbers from 0 to 1'),
    'half right': (lambda d: spoil_tensors(d, replaced(right=torch.full((72,), 7, dtype=torch.uint8))), 'right must be 0 or 1'),
    'a variance of nothing': (lambda d: spoil_tensors(d, replaced(rest=torch.zeros(1))), 'a variance must be above 0|A variance must be above 0'),
    'an infinite distance': (lambda d: spoil_tensors(d, replaced(distance=torch.full((72,), float('inf')))), 'distance must be finite'),
    'an infinite center': (lambda d: spoil_tensors(d, lambda t: t['center'].fill_(float('inf')) is None), 'not finite'),
    'images without end': (lambda d: set_summary(d, images=10**12), 'not an entry about the answers'),
    'other images': (lambda d: set_summary(d, images=71), r'shape \[72\]'),
    'directions without end': (lambda d: set_summary(d, directions=10**9), 'not an entry about the answers'),
    'another file': (lambda d: set_summary(d, file='../x'), 'not an entry about the answers'),
    'no digest': (lambda d: set_summary(d, sha256=''), 'not an entry about the answers'),
    'an entry that is text': (lambda d: set_own(d, abstain='yes'), 'not an entry about the answers'),
    'an entry in an older format': (lambda d: set_own(d, format=2), 'unknown fields: abstain'),
}


@pytest.mark.parametrize('how', HOSTILE)
def test_hostile_answers_are_refused_with_a_reason(how, model):
    spoil, reason = HOSTILE[how]
    spoil(model)
    with pytest.raises((ValueError, OSError), match=reason) as e: load_predictor(model, 'cpu')
    assert len(str(e.value)) < 600 and '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['artifact-0.1.0', 'artifact-0.1.0-format2'])
def test_old_artifacts_open_and_say_what_to_do(name, tmp_path, capsys):
    picture(0, 0).save(tmp_path/'a.png')
    for flag, value in (('--min-precision', .95), ('--coverage', .9), ('--unlike', .05)):
        assert main(['predict', str(GOLDEN/name), str(tmp_path/'a.png'), flag, str(value)]) == 2
        err = capsys.readouterr().err
        assert err == (f'fastbit: error: {flag} {value}: this model has no answers on validation images to choose a threshold from. '
                       'Train it again, or export it again with learn.export(FOLDER).\n')
    assert main(['predict', str(GOLDEN/name), str(tmp_path/'a.png')]) == 0


# prediction

def test_answers_sets_and_distances_of_predictions(run):
    out, data, res = run
    p, files = load_predictor(out, 'cpu'), sorted(data.rglob('*.png'))[::6]
    wanted = p.answers.precision(.4).possible
    plain, df = p.predict(files, probs=True), p.predict(files, probs=True, min_precision=wanted, coverage=.9, unlike=.05)
    assert list(df)[:9] == ['path', 'prediction', 'probability', 'calibrated', 'reason', 'answer', 'set', 'unlike', 'p_value']
    assert (df.prediction == plain.prediction).all() and np.abs(df.probability - plain.probability).max() < 1e-6
    sure = df.calibrated >= p.answers.precision(wanted).threshold - 2e-6
    assert (df.answer == df.prediction.where(sure, 'unsure')).all()
    assert [o[0] for o in df.set] == df.prediction.tolist() and all(1 <= len(o) <= 3 for o in df.set)
    assert (df.unlike == (df.p_value <= .05)).all() and df.p_value.between(0, 1, inclusive='right').all()
    alone = [p.predict(f, min_precision=wanted, coverage=.9, unlike=.05) for f in files[:5]]
    assert [o.answer[0] for o in alone] == df.answer[:5].tolist() and [o.set[0] for o in alone] == df.set[:5].tolist()


def test_validation_images_get_what_was_promised(run):
    "On the very images that thresholds are from: coverage and alarms as asked"
    out, _, res = run
    valid = res.predictions.query('split == "valid"')[['path', 'label']]
    got = load_predictor(out, 'cpu').evaluate_selective(valid, coverage=.9, unlike=.1)
    assert got.n == 72 and got.coverage >= .9 - 1e-9 and 0 < got.unlike <= .1
    assert got.wanted is None and '90%' in str(got) and 'images answered' not in str(got)


def test_an_unreadable_image_has_no_answer(run, tmp_path):
    (tmp_path/'bad.png').write_text('no image')
    df = load_predictor(run[0], 'cpu').predict([tmp_path/'bad.png', picture(0, 0)], coverage=.9, unlike=.05)
    assert df.reason[0] and df.set[0] is None and df.unlike[0] is None and df.set[1] and df.unlike[1] in (True, False)


def test_a_class_that_is_called_unsure(tmp_path):
    save_artifact(tmp_path/'model', some_net(), about_net(classes=('unsure', 'green', 'red')), answers=some_answers(300))
    df = load_predictor(tmp_path/'model', 'cpu').predict([picture(i, i) for i in range(5)], min_precision=.98)
    assert set(df.answer) <= {'(unsure)', 'unsure', 'green', 'red'} and (df.answer[df.prediction != df.answer] == '(unsure)').all()


def test_what_is_not_reachable_is_refused_before_work(run, monkeypatch):
    p = load_predictor(run[0], 'cpu')
    monkeypatch.setattr(Predictor, 'logits', lambda *a, **k: pytest.fail('it predicts'))
    possible = p.answers.precision(.999).possible
    with pytest.raises(ValueError, match=fr'min_precision=0.999: No threshold reaches 99.9% precision with these 72 images: .* 2995 images are needed.*{possible:.0%} is possible'):
        p.predict(picture(0, 0), min_precision=.999)
    for asked, words in ((dict(min_precision=95), 'did you mean min_precision=0.95'), (dict(coverage=1), 'did you mean coverage=0.9'), (dict(unlike=0), 'did you mean unlike=0.05'),
                         (dict(unlike=.001), 'a rate of 0.0137 or more can be kept'), (dict(tta=True, coverage=.9), 'tta=True changes the confidences')):
        with pytest.raises(ValueError, match=words): p.predict(picture(0, 0), **asked)


def test_the_command_predicts_and_evaluates(run, tmp_path, capsys):
    out, data, res = run
    p = load_predictor(out, 'cpu')
    share = p.answers.precision(.999).possible
    files = [str(f) for f in sorted((data/'red').glob('*'))[:12]]
    assert main(['predict', str(out), *files, '--min-precision', str(share), '--coverage', '90%', '--unlike', '5']) == 0
    said = capsys.readouterr()
    assert said.out.split('\n')[0].split() == ['path', 'answer', 'prediction', 'confidence', 'set', 'unlike', 'p_value']
    assert said.err.startswith(f'fastbit: note: {100*share:g}% precision: answer from confidence ') and said.err.count('\n') == 1
    assert main(['predict', str(out), *files, '--min-precision', str(share), '--coverage', '.9', '--csv']) == 0
    df = pd.read_csv(io.StringIO(capsys.readouterr().out))
    want = p.predict(files, min_precision=share, coverage=.9)
    assert df.answer.tolist() == want.answer.tolist() and df['set'].str.split('|').map(tuple).tolist() == want['set'].tolist()
    res.predictions.query('split == "test"')[['path', 'label']].to_csv(tmp_path/'test.csv', index=False)
    assert main(['evaluate', str(out), str(tmp_path/'test.csv'), '--min-precision', str(share), '--coverage', '.9', '--unlike', '.05']) == 0
    said = capsys.readouterr().out
    for words in (r'\d+ of 36 images answered', r'% of the sets contain the true class', r'% of the images are unlike the training images', 'chosen on 72 validation images'): assert re.search(words, said), said


@pytest.mark.parametrize('flag, value, usual', [('--min-precision', '0', .95), ('--min-precision', '100', .95), ('--coverage', '-1', .9), ('--unlike', '1', .05)])
def test_the_command_refuses_what_is_no_share(flag, value, usual, run, tmp_path, capsys):
    picture(0, 0).save(tmp_path/'a.png')
    assert main(['predict', str(run[0]), str(tmp_path/'a.png'), f'{flag}={value}']) == 2
    assert capsys.readouterr().err == f'fastbit: error: {flag} must be between 0 and 1 (did you mean {usual}?)\n'


# export, ONNX, report

def test_learn_export_measures_answers(run, tmp_path):
    learn = run[2].learn
    learn.export(tmp_path/'a')
    mine, theirs = load_predictor(tmp_path/'a', 'cpu').answers, load_predictor(run[0], 'cpu').answers
    for k in ('confidence', 'right', 'true_prob', 'distance'): np.testing.assert_allclose(getattr(mine, k), getattr(theirs, k), atol=1e-5)
    learn.export(tmp_path/'b', answers=False)
    assert load_predictor(tmp_path/'b', 'cpu').answers is None


def test_loaders_that_fastbit_did_not_make_have_no_distances(folder, tmp_path):
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, RandomSplitter, Resize, get_image_files, parent_label
    from fastbit.bodies import body_preprocess
    from fastbit.training import transfer_learner
    dls = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(seed=0), item_tfms=Resize(32)).dataloaders(folder, bs=8, device='cpu', num_workers=0)
    transfer_learner(dls, **TINY).export(tmp_path/'model', preprocess=body_preprocess('test_efficientnet', 32))
    p = load_predictor(tmp_path/'model', 'cpu')
    assert p.answers.n == 8 and p.predict(picture(0, 0), coverage=.5)['set'][0]
    with pytest.raises(ValueError, match='unlike=0.2: this model has no distances from its training images'): p.predict(picture(0, 0), unlike=.2)


def test_groups_of_the_data_are_kept(run, tmp_path):
    "Images of one patient or video prove less than as many independent ones"
    table = pd.DataFrame([(str(f), f.parent.name, f'{f.parent.name}{int(f.stem)//4}') for f in sorted(run[1].rglob('*.png'))], columns=['path', 'label', 'group'])
    baseline(table, **TINY, group_col='group', recipe='head', size=32, valid_pct=.4, device='cpu', num_workers=0, out=tmp_path/'out', verbose=False)
    p = load_predictor(tmp_path/'out', 'cpu')
    n_groups = len(np.unique(p.answers.groups))
    assert p.answers.groups.shape == (p.answers.n,) and n_groups < p.answers.n/2
    assert p.answers.precision(.9).tested == n_groups and f'these {p.answers.n} images in {n_groups} independent groups: ' in str(p.answers.precision(.9))
    unseen = table[table.path.isin(pd.read_csv(tmp_path/'out'/'predictions.csv').path)]
    alone, together = (p.evaluate_selective(unseen, coverage=.9, **own).coverage_interval for own in ({}, dict(group_col='group')))
    assert together != alone   # the interval of groups


def test_onnx_has_distances_and_thresholds(run, tmp_path):
    import onnx, onnxruntime
    p, files = load_predictor(run[0], 'cpu'), sorted(run[1].rglob('*.png'))[:6]
    assert export_onnx(p, tmp_path/'net.onnx') <= 1e-4
    from PIL import Image
    x = np.stack([np.asarray(Image.open(f).convert('RGB').resize((32, 32), Image.BICUBIC)) for f in files])
    session = onnxruntime.InferenceSession(tmp_path/'net.onnx')
    assert [o.name for o in session.get_outputs()] == ['probabilities', 'calibrated', 'distance']
    probs, calibrated, distance = session.run(None, dict(images=x))
    want = p.logits([str(f) for f in files], distances=True)
    assert np.abs(distance - want.distances).max() < 1e-4
    told = {o.key: json.loads(o.value) for o in onnx.load(tmp_path/'net.onnx').metadata_props}['thresholds']
    ours = p.predict(files, coverage=.9, unlike=.05)
    assert (distance > told['distance_for_alarms']['0.05']).tolist() == ours.unlike.tolist()
    sets = calibrated >= told['probability_for_coverage']['0.9']
    assert [set(np.array(p.classes)[row | (q == q.max())]) for row, q in zip(sets, calibrated)] == [set(o) for o in ours['set']]
    assert told['confidence_for_precision']['0.99'] is None   # with 72 images


def test_the_report_says_when_not_to_answer(run):
    seen = look_at(run[0]/'report.html', 1200)
    assert (seen['errors'], seen['broken']) == ([], [])
    for words in ('When not to answer', 'from the 72 validation images.', 'wanted precision', 'Sets of classes', 'Unlike the training images', '5% or fewer are'): assert words in seen['text'], words
    assert 'which are the images of this page' not in seen['text']


def test_the_report_of_validation_images_says_so(run):
    page = str(run[2].learn.report())
    assert 'which are the images of this page; the columns about these images are not an independent check' in page


def test_the_result_says_it_in_a_line(run):
    line, = re.findall(r'^unsure +(.*)$', str(run[2]), re.M)
    assert 'precision on the' in line or 'is possible' in line or 'No threshold' in line
    assert json.loads((run[0]/'results.json').read_text())['seconds']['features'] >= 0
