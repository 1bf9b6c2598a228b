"What each task has to have: the same seed, the same weights; resumed is straight, cached is live, exported is trained, and pages and terminals run no label"
import io, json, re

import numpy as np, pandas as pd, pytest, timm, torch
from fastai.callback.core import Callback
from huggingface_hub import ModelCard

from markupsafe import escape

from fastbit import __version__
from fastbit.cli.command import main
from fastbit.core.files import csv_text
from fastbit.export import load_predictor
from fastbit.export.card import CARD, as_markdown
from fastbit.metrics.tasks import TASKS
from conftest import look_at
from tasks import CASES, equal


@pytest.fixture(scope='module', params=CASES)
def case(request): return CASES[request.param]


@pytest.fixture(scope='module')
def data(case, tmp_path_factory): return case.table(tmp_path_factory.mktemp(case.key)/'images')


@pytest.fixture(scope='module')
def run(case, data, tmp_path_factory):
    "(folder of the results, result) of the head"
    out = tmp_path_factory.mktemp('out')/'results'
    return out, case.run(data, out)


def test_every_task_has_a_row(): assert list(CASES) == list(TASKS)


# The same numbers

class Stop(Callback):
    "Ctrl-C in a step"
    order = 90
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.learn.train_iter == self.at: raise KeyboardInterrupt


def fit(learn, how, file=None, stop=None):
    where = dict(cbs=Stop(stop) if stop else None) | (dict(checkpoint=file, checkpoint_every=1) if file else {})
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging():
        if how == 'rule': learn.fit_hyperrule(batch_size=8, n_steps=4, base_lr=.1, mixup=.2, eval_every=2, show=False, **where)
        else: learn.fit_one_cycle(1, 1e-2, **where)
    return learn


@pytest.fixture(scope='module')
def straight(case, data): return {how: fit(case.learner(data), how) for how in ('cycle', 'rule')}


@pytest.mark.parametrize('how', ['cycle', 'rule'])
def test_stopped_and_resumed_is_straight(case, data, straight, tmp_path, how):
    file = tmp_path/'run.safetensors'
    with pytest.raises(KeyboardInterrupt): fit(case.learner(data), how, file, stop=3)
    resumed = fit(case.learner(data), how, file)
    assert equal(resumed, straight[how])
    assert resumed.history.epochs.drop(columns='seconds').equals(straight[how].history.epochs.drop(columns='seconds'))


def test_the_same_seed_with_worker_processes_is_the_same(case, data, straight):
    assert equal(fit(case.learner(data, num_workers=2), 'cycle'), straight['cycle'])
    assert not equal(fit(case.learner(data, seed=1), 'cycle'), straight['cycle'])


def test_a_checkpoint_of_another_task_is_refused(case, data, tmp_path):
    other = CASES['label' if case.key == 'number' else 'number']
    theirs = data[['path']].assign(**{other.column: [other.label(i) for i in range(len(data))]})
    with pytest.raises(KeyboardInterrupt): fit(other.learner(theirs), 'cycle', tmp_path/'run.safetensors', stop=2)
    with pytest.raises(ValueError, match='belongs to a different run'): fit(case.learner(data), 'cycle', tmp_path/'run.safetensors')


def test_cached_features_train_as_computed_ones(case, data):
    heads = [case.learner(data) for _ in range(3)]
    for learn, cache in zip(heads, (False, True, True)):
        with learn.no_bar(), learn.no_logging(): learn.fit_head(solver='lbfgs', cache=cache)
    assert [o.head_features[0].computed for o in heads] == [(n := heads[0].dls.train.n), n, 0]
    assert equal(heads[0], heads[1]) and equal(heads[0], heads[2])


# Export

def test_the_opened_model_is_the_learner(run):
    out, res = run
    found, df = load_predictor(out, 'cpu').predict(res.predictions.path.tolist(), probs=not res.learn.task.is_number), res.predictions
    numbers = df.select_dtypes('number').columns.intersection(found.columns)
    assert len(numbers) >= 2, numbers
    assert np.allclose(found[numbers], df[numbers], rtol=1e-5, atol=1e-5) and df[numbers].notna().any().all()
    if res.learn.task.is_single: assert found.prediction.tolist() == df.prediction.tolist()


def test_plain_timm_gives_the_same_outputs(case, run):
    p = load_predictor(run[0], 'cpu')
    theirs = timm.create_model(f'local-dir:{run[0]/"model"}', pretrained=True).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        ours = p.model(x)
        assert (theirs(p.model.normalized(x)) - ours).abs().max() <= 1e-5*ours.abs().max()
    assert theirs.num_classes == len(p.classes) and theirs.pretrained_cfg['label_names'] == list(p.classes)


# What people see

def test_the_report_runs_nothing(case, run):
    html = re.sub('data:[^"]*', '', (run[0]/'report.html').read_text())
    assert not re.search('<script|<b>bold|<i>level', html) and 'script&gt;alert(' in html
    assert not re.search(r'\b(nan|NaN|None)\b', html), re.findall(r'.{40}\b(?:nan|NaN|None)\b.{40}', html)[:3]


def test_the_paragraph_for_a_paper_has_the_numbers_of_the_run(run):
    "In the report, the model card and results.json"
    out, res = run
    text, (_, headline) = res.methods, res._rows()[0]
    assert headline.partition(' on ')[0] in text and f'{res.plan.n_train} for training' in text and f'fastbit {__version__}' in text
    assert json.loads((out/'results.json').read_text())['methods'] == text
    assert escape(text) in (out/'report.html').read_text() and as_markdown(text) in (out/'model'/CARD).read_text()


def test_the_page_in_a_browser(run):
    seen = look_at(run[0]/'report.html', 390)
    assert (seen['errors'], seen['broken'], seen['requests']) == ([], [], []) and seen['pictures'] > 3
    assert seen['too_wide'] <= 0   # nothing to scroll sideways on a phone


@pytest.mark.filterwarnings('ignore::fastbit.core.text.DataWarning')   # these images were trained on
def test_terminals_get_no_control_characters(case, run, data, tmp_path, capsys):
    if case.key == 'labels': data = data.assign(label=['|'.join(o) for o in data.label])
    data.to_csv(tmp_path/'t.csv', index=False)
    more = ['--label-sep', '|'] if case.key == 'labels' else []
    assert main(['predict', str(run[0]), *data.path[:8]]) == 0
    assert main(['evaluate', str(run[0]), str(tmp_path/'t.csv'), '--all', '--label-col', case.column, *more]) == 0
    said = capsys.readouterr()
    shown = said.out + said.err
    assert not re.search(r'[\x00-\x08\x0b-\x1f\x7f\x9b]', shown), shown
    assert case.key == 'number' or '\\x1b[31mred' in shown


def test_tables_are_raw_for_programs_and_harmless_for_spreadsheets(case, run):
    df = pd.read_csv(run[0]/'predictions.csv', keep_default_na=False)
    assert len(df) == len(run[1].predictions)
    if case.key != 'number': assert df.astype(str).isin(['=1+1']).any(axis=None)
    cells = pd.read_csv(io.StringIO(csv_text(df, spreadsheet=True)), header=None, keep_default_na=False, dtype=str).values.ravel()
    assert not [o for o in cells if o[:1] in ('=', '+', '@')]


# The model card

def test_the_card_has_the_figures_of_the_run_and_no_path_of_it(case, data, run):
    card = ModelCard.load(run[0]/'model'/CARD)
    named, found = {o.metric_type: o for o in card.data.eval_results}, run[1].evaluation
    headline = dict(label='accuracy', labels='map', number='mae')[case.key]
    assert named[headline].metric_value == pytest.approx(getattr(found, headline), abs=1e-6)
    ends = run[1].score.interval
    assert named[headline].metric_args == dict(n=found.n) | (dict(confidence_interval_95=pytest.approx(list(ends))) if ends else {})
    assert (card.data.pipeline_tag is None) is (case.key == 'number') and f'| training | {run[1].plan.n_train} |' in card.text
    assert str(run[0].parent) not in card.content and str(data.path[0]).rpartition('/')[0] not in card.content
    assert not re.search(r'(?<!\\)<(script|b|i)>', card.text) and '\x1b' not in card.content
    assert [line[3:] for line in card.text.splitlines() if line.startswith('## ')] >= ['Use', 'Data', 'Results']
