"A run repeated from its results: the same numbers, typed options win, and nothing is misread"
import json

import pandas as pd, pytest

from fastbit.baseline import baseline, saved_options
from fastbit.cli.command import main
from fastbit.core.text import DataWarning
from conftest import TINY, write_folder

QUICK = dict(TINY, recipe='head', size=32, epochs=2, batch_size=8, device='cpu', num_workers=0, flip=False, seed=5, verbose=False)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp('config')
    data = write_folder(root/'data', dict(blue=12, green=12, red=12))
    baseline(data, **QUICK, out=root/'first')
    return root


def outcome(out) -> tuple:
    "All that a seed decides"
    history = pd.read_csv(out/'history.csv').drop(columns='seconds', errors='ignore')
    return (out/'model'/'model.safetensors').read_bytes(), (out/'predictions.csv').read_text(), history.to_csv()


def test_a_repeated_run_is_the_same_bit_for_bit(run):
    baseline(**saved_options(run/'first'), out=run/'python', verbose=False)
    assert main(['baseline', '--config', str(run/'first'/'results.json'), '--out', str(run/'shell'), '--quiet']) == 0
    assert outcome(run/'python') == outcome(run/'shell') == outcome(run/'first')
    settings = [json.loads((run/name/'results.json').read_text())['settings'] | dict(out='') for name in ('first', 'python', 'shell')]
    assert settings[0] == settings[1] == settings[2]


def test_what_is_typed_wins(run, capsys):
    toml = run/'mine.toml'
    toml.write_text(f'path = "{run}/data"\narch = "test_efficientnet"\nweights = "random"\nsize = 32\nrecipe = "head"\nvalid-pct = 0.5\n')
    assert main(['baseline', '--config', str(toml), '--valid-pct', '0.25', '--size', '48', '--dry-run']) == 0
    out = capsys.readouterr().out
    assert '9 to validate' in out or '27' in out
    assert '48 px' in out or '48 x 48' in out, out
    plan = baseline(**saved_options(run/'first', recipe='auto', size=48), dry_run=True)   # which has no epochs
    assert plan.size == 48 and plan.recipe == 'auto' and plan.seed == 5


@pytest.mark.parametrize('text, words', [
    ('{"sise": 64}', 'unknown option sise, did you mean size?'), ('{"size": "big"}', "size is 'big'; it must be a whole number"),
    ('{"training": {"lr": 1}}', 'unknown option training'), ('[]', 'must be an object'), ('{', 'cannot be read as JSON'),
    ('{"epochs": 0, "recipe": "head"}', '--epochs 0'), ('{"recipe": "magic"}', "unknown recipe 'magic'"), ('{"path": "nowhere"}', "no folder or file 'nowhere'")])
def test_a_wrong_file_is_refused_before_work(tmp_path, capsys, text, words):
    (tmp_path/'a.json').write_text(text)
    assert main(['baseline', '--config', str(tmp_path/'a.json')]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_file(tmp_path, capsys):
    assert main(['baseline', '--config', str(tmp_path/'none.json')]) == 2 and 'none.json' in capsys.readouterr().err


def test_other_versions_are_said(run, tmp_path):
    found = json.loads((run/'first'/'results.json').read_text())
    found['versions']['torch'] = '1.0'
    (tmp_path/'results.json').write_text(json.dumps(found))
    with pytest.warns(DataWarning, match=r'was made with torch 1\.0 \(here .*results may differ'): saved_options(tmp_path)


def test_what_a_file_cannot_hold(run, tmp_path):
    found = json.loads((run/'first'/'results.json').read_text())
    for change, words in ((dict(path='DataFrame'), 'give the table'), (dict(augment='[Flip()]'), 'Pass augment=')):
        (tmp_path/'results.json').write_text(json.dumps(found | dict(settings=found['settings'] | change)))
        with pytest.raises(ValueError, match=words): saved_options(tmp_path)
        name, value = next(iter(dict(path=run/'data', augment='light').items())) if 'path' in change else ('augment', 'light')
        assert saved_options(tmp_path, **{name: value})[name] == value
