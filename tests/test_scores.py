"Scores are scikit-learn's, their intervals cover what they should, and a run is judged by the metric that was asked for"
import json, warnings

import numpy as np, pytest, sklearn.metrics as skm, torch
from safetensors.torch import load_file

from conftest import TINY, write_folder
from fastbit.baseline import baseline
from fastbit.baseline.phases import Scores, UpperPhase
from fastbit.cli.command import main
from fastbit.config import METRICS, WATCHED, TrainOptions
from fastbit.data import image_dataloaders
from fastbit.metrics import class_order, evaluate_probs, metric_value, score_metric
from fastbit.metrics.intervals import bootstrap_values
from fastbit.metrics.scores import METRIC_WORDS, RANKED_CELLS, score_intervals, score_statistics
from fastbit.training import KeepBest, transfer_learner
from test_auto import Stop

DRAWS = 1000
LOW, HIGH = .95 - 3*(.95*.05/DRAWS)**.5, .95 + 3*(.95*.05/DRAWS)**.5   # what 1,000 draws allow


# Values

def by_scikit_learn(probs, targs) -> dict:
    "The same scores; means over classes are over those with images"
    n_classes, preds, seen = probs.shape[1], probs.argmax(1), np.unique(targs)
    how = dict(labels=seen, average='macro', zero_division=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # about classes that are missing
        one = lambda f, c: f(targs == c, probs[:, c])
        auc = [one(skm.roc_auc_score, c) for c in ([1] if n_classes == 2 else seen)]
        return dict(
            balanced_accuracy=skm.balanced_accuracy_score(targs, preds), macro_precision=skm.precision_score(targs, preds, **how), macro_f1=skm.f1_score(targs, preds, **how),
            roc_auc=np.mean(auc), pr_auc=np.mean([one(skm.average_precision_score, c) for c in seen]) if len(seen) > 1 else np.nan,   # 1 for scikit-learn
            kappa=skm.cohen_kappa_score(targs, preds), quadratic_kappa=skm.cohen_kappa_score(targs, preds, labels=range(n_classes), weights='quadratic'),
            matthews=skm.matthews_corrcoef(targs, preds))


def cases():
    "Random sets, with ties and without, and degenerate ones"
    rng = np.random.default_rng(0)
    for i in range(60):
        n, k = rng.integers(3, 60), rng.integers(2, 7)
        probs = rng.dirichlet(np.ones(k), n)
        if i % 3 == 0: probs = np.round(4*probs)/4 + 1e-9   # ties
        if i % 3 == 1: probs = probs.astype(np.float32)
        yield f'random {i}', probs, rng.choice(k, n, p=rng.dirichlet(np.ones(k)))
    equal, two = np.full((6, 3), 1/3), np.array([0, 0, 1, 1, 2, 2])
    right = np.eye(3)[two]
    yield 'constant prediction', np.tile([.6, .3, .1], (6, 1)), two
    yield 'all tied', equal, two
    yield 'perfect', right, two
    yield 'always wrong', right[:, [1, 2, 0]], two
    yield 'a class without images', right, np.array([0, 0, 1, 1, 0, 1])
    yield 'one class, another predicted', right[:, [1, 2, 0]], np.zeros(6, int)
    yield 'one class', np.tile([.6, .3, .1], (6, 1)), np.zeros(6, int)
    yield 'one image', right[:1], two[:1]
    yield 'two classes', np.array([[.9, .1], [.9, .1], [.4, .6], [.2, .8]]), np.array([0, 1, 1, 1])


@pytest.mark.parametrize('name, probs, targs', list(cases()), ids=[c[0] for c in cases()])
def test_scores_are_scikit_learns(name, probs, targs):
    theirs, order = by_scikit_learn(probs, targs), range(probs.shape[1])
    ours = {k: v[0] for k, v in score_statistics(probs, targs, order)(np.ones((1, len(targs)))).items()}
    assert set(ours) == set(theirs)
    for k in ours: assert ours[k] == pytest.approx(theirs[k], abs=1e-12, nan_ok=True), k
    for k in (*ours, 'accuracy'): assert metric_value(k, probs, targs) == pytest.approx((theirs | dict(accuracy=skm.accuracy_score(targs, probs.argmax(1))))[k], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize('grouped', [False, True])
def test_a_resample_is_a_set_with_rows_that_repeat(grouped):
    rng = np.random.default_rng(1)
    for _ in range(20):
        n, k = rng.integers(4, 30), rng.integers(2, 5)
        probs, targs = np.round(rng.dirichlet(np.ones(k), n), 1) + 1e-9, rng.integers(0, k, n)
        groups = rng.integers(0, 4, n) if grouped else np.arange(n)
        drawn = rng.integers(0, groups.max()+1, (3, groups.max()+1))
        weights = np.stack([[np.sum(d == g) for g in groups] for d in drawn])
        found = score_statistics(probs, targs, range(k))(weights)
        for i, w in enumerate(weights):
            rows = np.repeat(np.arange(n), w)
            if not len(rows): continue
            theirs = by_scikit_learn(probs[rows], targs[rows])
            for name, v in found.items(): assert v[i] == pytest.approx(theirs[name], abs=1e-12, nan_ok=True), name


def test_the_evaluation_has_every_metric_of_a_run():
    "Two lists, since the command starts without numpy: one of them is what `--metric` takes"
    probs, targs = np.random.default_rng(0).dirichlet(np.ones(4), 40), np.arange(40) % 4
    ev = evaluate_probs(torch.tensor(probs), torch.tensor(targs), order=range(4))
    assert {*METRIC_WORDS} == {*METRICS, 'macro_precision'} and {*METRICS} - {*WATCHED} == {'loss'}
    for name in METRICS: assert ev.score(name).value == pytest.approx(metric_value(name, probs, targs), abs=1e-12)
    assert 'quadratic_kappa' not in evaluate_probs(torch.tensor(probs), torch.tensor(targs)).scores


def test_what_is_undefined_is_none_and_not_nan():
    one = evaluate_probs(torch.tensor([[.9, .1]]*5), torch.zeros(5, dtype=torch.long))
    for name in ('roc_auc', 'pr_auc', 'kappa'): assert one.scores[name].value is one.scores[name].interval is None, name
    assert 'undefined' in one.more()
    assert one.f1_interval.low < .6 and one.f1_interval.high == 1   # five right answers are not proof of a perfect model
    diverged = evaluate_probs(torch.full((5, 2), float('nan')), torch.tensor([0, 1, 0, 1, 0]))
    assert 'roc_auc' not in diverged.scores and diverged.scores['kappa'].value == 0
    assert all(s.interval is None for s in evaluate_probs(torch.tensor([[.9, .1]]), torch.tensor([0])).scores.values())
    assert np.isnan(metric_value('loss', np.full((2, 2), np.nan), np.array([0, 1])))


def test_large_sets_have_no_intervals_of_ranks(monkeypatch):
    probs, targs = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(4), 40)), torch.arange(40) % 4
    few = evaluate_probs(probs, targs)
    monkeypatch.setattr('fastbit.metrics.evaluation.RANKED_CELLS', 100)
    many = evaluate_probs(probs, targs)
    assert {k for k, s in many.scores.items() if s.interval is None} == {'roc_auc', 'pr_auc'} and RANKED_CELLS > 10_000*100
    assert {k: s.value for k, s in many.scores.items()} == {k: s.value for k, s in few.scores.items()}


# Intervals

def population(shares, gap, n=100_000):
    "Probabilities and labels, of classes with these shares"
    rng = np.random.default_rng(1)
    targs = rng.choice(len(shares), n, p=shares)
    logits = 1.5*rng.standard_normal((n, len(shares))) + .5*np.log(shares)
    logits[np.arange(n), targs] += gap
    probs = np.exp(logits)
    return probs/probs.sum(1, keepdims=True), targs


def scores_of(probs, targs, groups=None):
    "All scores of a sample, and percentiles of the same bootstrap"
    statistics = score_statistics(probs, targs)
    values = {k: v[0] for k, v in statistics(np.ones((1, len(targs)))).items()}
    samples = bootstrap_values(statistics, len(targs), groups=groups)
    return score_intervals(values, samples, probs, targs, groups), {k: np.nanquantile(v, [.025, .975]) for k, v in samples.items()}


WATCH = ('balanced_accuracy', 'roc_auc', 'pr_auc', 'kappa')


@pytest.mark.parametrize('n, shares, gap', [(300, (.6, .25, .1, .05), 2.5), (300, (.95, .05), 4.)])
def test_intervals_cover_the_truth_where_classes_are_rare(few_resamples, n, shares, gap):
    probs, targs = population(shares, gap)
    truth = {k: v[0] for k, v in score_statistics(probs, targs)(np.ones((1, len(targs)))).items()}
    rng, covered, percentiles = np.random.default_rng(2), dict.fromkeys(WATCH, 0), dict.fromkeys(WATCH, 0)
    for _ in range(DRAWS):
        rows = rng.integers(0, len(targs), n)
        found, plain = scores_of(probs[rows], targs[rows])
        for k in WATCH:
            covered[k] += found[k].interval.low <= truth[k] <= found[k].interval.high
            percentiles[k] += plain[k][0] <= truth[k] <= plain[k][1]
    for k in WATCH: assert LOW - .02 <= covered[k]/DRAWS <= HIGH + .02, (k, covered, percentiles)
    if len(shares) == 2: assert percentiles['balanced_accuracy']/DRAWS < .87 and percentiles['roc_auc']/DRAWS < .8, percentiles


def test_intervals_of_groups_cover_the_truth_and_plain_ones_do_not(few_resamples):
    n_groups, sizes = 30, (8, 12)
    probs, targs = population((.6, .3, .1), 2.5)
    sure = probs[np.arange(len(targs)), targs]
    rng, names = np.random.default_rng(3), WATCH[:3]
    easy, hard = np.flatnonzero(sure > .6), np.flatnonzero(sure <= .6)
    def draw(n_groups):
        "Rows in groups that are easy or hard as a whole, such as patients"
        picked = rng.random(n_groups) < .7
        parts = [rng.choice(easy if e else hard, n) for e, n in zip(picked, rng.integers(*sizes, n_groups))]
        return np.concatenate(parts), np.repeat(np.arange(n_groups), [len(p) for p in parts])
    rows, _ = draw(20_000)
    truth = {k: v[0] for k, v in score_statistics(probs[rows], targs[rows])(np.ones((1, len(rows)))).items()}
    covered, plain = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for i in range(DRAWS):
        rows, groups = draw(n_groups)
        found = scores_of(probs[rows], targs[rows], groups)[0]
        for k in names: covered[k] += found[k].interval.low <= truth[k] <= found[k].interval.high
        if i % 5: continue
        found = scores_of(probs[rows], targs[rows])[0]
        for k in names: plain[k] += found[k].interval.low <= truth[k] <= found[k].interval.high
    for k in names: assert LOW - .02 <= covered[k]/DRAWS <= HIGH + .02, (k, covered)
    assert max(plain.values())/(DRAWS/5) < .9, plain


# A run

@pytest.fixture(scope='module')
def data(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('scores')/'photos', dict(blue=22, green=12, red=8))


RUN = dict(**TINY, size=32, n_steps=8, checkpoint_every=1, metric='macro_f1', keep_best='metric', verbose=False)


@pytest.fixture(scope='module')
def run(data, tmp_path_factory): return baseline(data, **RUN, out=tmp_path_factory.mktemp('run')/'out')


def test_a_run_is_judged_by_its_metric(run):
    probs, targs = run.probs.numpy(), run.targs.numpy()
    theirs = skm.f1_score(targs, probs.argmax(1), labels=np.unique(targs), average='macro', zero_division=0)
    assert run.score.value == pytest.approx(theirs) == pytest.approx(run.evaluation.macro_f1)
    first, second = str(run).splitlines()[:2]
    low, high = run.score.interval
    assert first == f'metric      macro-F1 {theirs:.4f} (95% CI {low:.3f}–{high:.3f}) on {len(targs)} held-out images' and second.startswith('accuracy')
    found, page = json.loads((run.out/'results.json').read_text()), (run.out/'report.html').read_text()
    assert found['metric'] == dict(name='macro_f1', value=run.score.value, interval=[low, high]) and found['settings']['metric'] == 'macro_f1'
    assert set(found['evaluation']['scores']) == {*METRIC_WORDS} - {'accuracy', 'macro_f1', 'loss', 'quadratic_kappa'}
    assert f'<title>photos: macro-F1 {theirs:.4f}' in page and page.index('</b>macro-F1') < page.index('</b>accuracy') and 'balanced accuracy' in page
    assert "metric='macro_f1', keep_best='metric'" in run.command
    about = json.loads((run.out/'model'/'config.json').read_text())
    assert json.dumps(about).count('"balanced_accuracy"') == 1


def test_the_metric_is_watched_over_the_whole_validation_set(run):
    assert run.learn.keep_best.monitor == 'macro_f1' and run.epochs.macro_f1.notna().all()
    assert all(p.metric == 'macro_f1' for p in run.plan.phases[1:])


def test_the_best_weights_by_a_metric_are_those_of_the_results(data):
    run = baseline(data, **TINY, size=32, recipe='onecycle', epochs=5, lr=.1, metric='macro_f1', keep_best='metric', verbose=False)
    scores = run.epochs[run.epochs.phase != 'head'].macro_f1
    assert run.chosen.startswith('the weights of') and 'by macro_f1' in run.chosen and run.score.value == pytest.approx(scores.max()) == pytest.approx(run.learn.keep_best.best)


def test_a_run_with_a_metric_resumes_bit_for_bit(data, tmp_path, monkeypatch, run):
    fit = UpperPhase.fit
    with monkeypatch.context() as m:
        m.setattr(UpperPhase, 'fit', lambda self, learn, checkpoint=None, cbs=None: fit(self, learn, checkpoint, cbs=Stop(3)))
        with pytest.raises(KeyboardInterrupt): baseline(data, **RUN, out=tmp_path/'out')
    again = baseline(data, **RUN, out=tmp_path/'out')
    a, b = (load_file(o/'model'/'model.safetensors') for o in (run.out, tmp_path/'out'))
    assert all(torch.equal(a[k], b[k]) for k in a) and again.evaluation == run.evaluation and again.chosen == run.chosen
    assert again.epochs.macro_f1.tolist() == run.epochs.macro_f1.tolist()


@pytest.mark.parametrize('metric, kept', [('roc_auc', 'from blocks.2 rather than head, by validation ROC-AUC (0.9000 and 0.5000)'),
                                          ('accuracy', 'head rather than from blocks.2, by validation loss after calibration (1.000 and 9.000)'),
                                          ('loss', 'head rather than from blocks.2, by validation loss after calibration (1.000 and 9.000)')])
def test_the_metric_decides_what_is_kept(data, monkeypatch, metric, kept):
    "The upper stages have the better AUC, and the worse loss"
    scores, asked = iter([Scores(.9, 1., 1., .5), Scores(.8, 9., 9., .9), Scores(.9, 1., 1., .5), Scores(.8, 9., 9., .9)]), []
    def of(learn, metric=None):
        asked.append(metric)
        return next(scores)
    monkeypatch.setattr(Scores, 'of', of)
    result = baseline(data, **RUN | dict(metric=metric, keep_best=None, checkpoint_every=None))
    assert result.chosen.split('; ')[0] == kept and set(asked) == {None if metric == 'accuracy' else metric}


def test_scores_that_tie_or_are_undefined_leave_the_choice_to_the_loss():
    better, worse = Scores(.5, 1., 1., .7), Scores(.5, 2., 2., .7)
    assert better.beats(worse, 'kappa') and not worse.beats(better, 'kappa')
    unknown = better._replace(value=None)
    assert unknown.beats(worse, 'kappa') and not worse.beats(unknown, 'kappa') and 'loss after calibration' in unknown.words(worse, 'kappa')
    assert worse._replace(value=.71).beats(better, 'kappa')


def test_a_metric_of_fastai_is_that_of_the_results(data):
    torch.manual_seed(0)
    dls = image_dataloaders(data, TINY['arch'], size=32, bs=3, num_workers=0, device='cpu')   # many batches, the last of another size
    learn = transfer_learner(dls, **TINY, metrics=[score_metric('roc_auc'), score_metric('balanced_accuracy')], cbs=KeepBest('roc_auc'))
    with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(2, .1)
    ev = learn.evaluate(show=False)
    assert ev.scores['roc_auc'].value == pytest.approx(learn.history.epochs.roc_auc.max(), abs=1e-6) == pytest.approx(learn.keep_best.best, abs=1e-6)


def undefined(preds, targs): return float('nan')


def test_a_metric_that_is_undefined_leaves_the_best_weights_to_the_loss(data):
    "A NaN is never better: without a word the last weights would stay, and patience would stop"
    torch.manual_seed(0)
    dls = image_dataloaders(data, TINY['arch'], size=32, num_workers=0, device='cpu')
    learn = transfer_learner(dls, **TINY, metrics=undefined, cbs=KeepBest('undefined', patience=2))
    with pytest.warns(UserWarning, match='^undefined is undefined on the validation images, so valid_loss chooses') as seen, learn.no_logging(), learn.no_bar(): learn.fit(4, 1e-3)
    keep, losses = learn.keep_best, learn.history.epochs.valid_loss
    assert len(seen) == 1 and len(losses) > 2 and keep.best == losses.min() == pytest.approx(learn.validate()[0], abs=1e-6)
    again = KeepBest('undefined', patience=2)   # of a run that resumes
    again.load_checkpoint_state(*keep.checkpoint_state())
    assert (again.monitor, again.by, again.comp, again.best) == ('undefined', 'valid_loss', np.less, keep.best)


def test_quadratic_kappa_names_the_order_that_it_assumes(data, tmp_path):
    quick = dict(TINY, size=32, recipe='head', verbose=False)
    with pytest.warns(UserWarning, match='in this order: blue < green < red. If it is another, number them, such as 0_blue'):
        plan = baseline(data, **quick, metric='quadratic_kappa', dry_run=True)
    assert plan.n_train
    numbered = write_folder(tmp_path/'grades', {'1': 6, '10': 6, '2': 6})
    result = baseline(numbered, **quick)
    places = np.array(class_order(result.learn.dls.vocab))
    assert sorted(result.learn.dls.vocab, key=int) == [result.learn.dls.vocab[i] for i in places.argsort()]
    expected = skm.cohen_kappa_score(places[result.targs], places[result.probs.numpy().argmax(1)], labels=range(3), weights='quadratic')
    assert result.evaluation.scores['quadratic_kappa'].value == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize('option, typed, near', [('--metric', 'balaned_accuracy', 'balanced_accuracy'), ('--metric', 'MCC', 'matthews'), ('--keep-best', 'f1', 'macro_f1'),
                                                 ('--keep-best', 'vaild_loss', 'valid_loss')])
def test_a_misspelt_metric_is_refused_with_the_nearest_name(capsys, monkeypatch, option, typed, near):
    monkeypatch.setattr('fastbit.baseline.run.Run.plan', None)   # no work is begun
    assert main(['baseline', '.', option, typed]) == 2
    words = capsys.readouterr().err
    assert words.startswith(f'fastbit: error: {option} {typed}: unknown metric, did you mean {near}? Choose from ') and words.count('\n') == 1
    with pytest.raises(ValueError, match=f'did you mean {near}'): TrainOptions(**{option[2:].replace('-', '_'): typed})


def test_what_is_watched():
    watched = lambda **options: TrainOptions(**options).watched
    assert watched() is None and watched(metric='kappa') is None and watched(patience=2) == watched(metric='loss', patience=2) == 'valid_loss'
    assert watched(metric='kappa', patience=2) == watched(metric='kappa', keep_best='metric') == 'kappa' and watched(keep_best='metric') == 'accuracy'
    assert watched(metric='kappa', keep_best='accuracy') == 'accuracy' and watched(metric='loss', keep_best='metric') == 'valid_loss'


def test_the_help_of_metric_says_what_decides(capsys):
    "Accuracy leaves the choice between head and more layers to the validation loss after calibration; any other metric decides itself"
    from fastbit.baseline.recipes import _deciding
    from fastbit.metrics import SINGLE_LABEL
    with pytest.raises(SystemExit): main(['baseline', '--help'])
    assert 'decides between the head and more layers (accuracy leaves that to the validation loss)' in ' '.join(capsys.readouterr().out.split())
    of = {metric: _deciding(TrainOptions(metric=metric), SINGLE_LABEL) for metric in METRICS}
    assert of.pop('accuracy') is None and all(k == v for k, v in of.items())
    surer, righter = Scores(.8, .5, .4, .7), Scores(.9, .6, .5, .8)
    assert surer.beats(righter, None) and righter.beats(surer, 'kappa') and surer.beats(righter, 'loss')
