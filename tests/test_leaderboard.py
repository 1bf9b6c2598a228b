"Bodies compared on one folder: ranked, kept, and gone on with"
import json, os, shutil, sys

import pandas as pd, pytest, timm

from fastbit.config import HeadOnly, OneCycle
from fastbit.studies import compare_runs, leaderboard
from conftest import look_at, run_fastbit, write_folder

module = sys.modules['fastbit.studies.trials']   # in the room, its name is the function's

SMALL = dict(archs=['test_efficientnet=random', 'test_efficientnet_ln=random', 'tf_efficientnet_b0'], size=32, recipes='onecycle', epochs=2, top=1, num_workers=0, verbose=False)


# timm 1.0.26 does not have the second
if not timm.is_model('test_efficientnet_ln'): SMALL['archs'].remove('test_efficientnet_ln=random')


@pytest.fixture(scope='module')
def shared_folder(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('shared')/'data', dict(blue=14, green=14, red=12))


@pytest.fixture(scope='module')
def board(shared_folder, tmp_path_factory): return leaderboard(shared_folder, out=tmp_path_factory.mktemp('board')/'board', **SMALL)


def test_the_board(board):
    df, out = board.rows, board.out
    assert df.recipe.tolist().count('probe') == len(SMALL['archs']) and (df.recipe == 'onecycle').sum() == 1
    good = df[df.failed == '']
    assert good.accuracy.is_monotonic_decreasing and good.images_s.gt(0).all() and good.disk_mb.gt(0).all() and (good.low <= good.accuracy).all()
    assert df.iloc[-1].failed and 'hub' in df.iloc[-1].failed and len(board.failures) == 1 and board.failures[0] in str(board)
    assert pd.read_csv(out/'leaderboard.csv').body.tolist() == df.body.tolist()
    if len(good) > 1:
        runs = [out/'runs'/module.run_name(r.body, r.recipe) for r in good.itertuples()]
        assert compare_runs(runs[0], runs[1]).difference == pytest.approx(good.behind.iloc[1])
    seen = look_at(out/'leaderboard.html', 390)
    assert (seen['errors'], seen['broken'], seen['requests'], seen['pictures']) == ([], [], [], 1) and seen['too_wide'] <= 0
    assert 'failed' in seen['text'] and 'report' in seen['text']


def test_again_does_only_what_is_missing(board, shared_folder, tmp_path, monkeypatch):
    first, out = board, shutil.copytree(board.out, tmp_path/'board')
    done = []
    for name in ('_probe_row', '_tune_row'):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real: (done.append(a[1].name), real(*a))[1])
    again = leaderboard(shared_folder, out=out, **SMALL)
    assert done == ['tf_efficientnet_b0']   # what failed is tried again
    assert again.rows.equals(first.rows)
    more = leaderboard(shared_folder, out=out, **SMALL | dict(recipes=['onecycle', 'head']))
    assert done[1:] == [first.rows[first.rows.recipe == 'onecycle'].body.item(), 'tf_efficientnet_b0'][::-1] and 'head' in set(more.rows.recipe)
    with pytest.raises(ValueError, match='another epochs'): leaderboard(shared_folder, out=out, **SMALL | dict(epochs=3))


def test_the_test_set_is_shown_for_the_chosen_one_alone(folder, tmp_path):
    board = leaderboard(folder, out=tmp_path/'board', **SMALL | dict(archs=['test_efficientnet=random']), test_pct=.2)
    text = str(board)
    tuned = board.rows[board.rows.recipe == 'onecycle'].iloc[0]
    run = json.loads((tmp_path/'board'/'runs'/module.run_name(tuned.body, 'onecycle')/'results.json').read_text())
    assert run['part'] == 'test' and tuned.accuracy == run['validation']['accuracy'] and tuned.test_accuracy == run['evaluation']['accuracy']
    assert text.count('test images') == 1 and f'{board.rows.iloc[0].test_accuracy:.1%}' in text and 'test_accuracy' not in board._table()


def test_the_command(folder, tmp_path):
    args = ('leaderboard', folder, '--arch', 'test_efficientnet=random', '--size', 32, '--top', 1, '--recipe', 'head', '--epochs', 2)
    run = run_fastbit(*args, cwd=tmp_path)
    assert run.returncode == 0 and 'behind the best' in run.stdout, run.stderr
    assert '1 body to probe' in run.stdout and 'name others with archs= (--arch)' in run.stdout
    again = run_fastbit(*args, cwd=tmp_path)
    assert again.stdout.count('from an earlier call') == 2 and len(list((tmp_path/'fastbit-runs').iterdir())) == 1
    wrong = run_fastbit('leaderboard', folder, '--arch', 'resnet5O', cwd=tmp_path)
    assert wrong.returncode == 2 and 'not the name of a timm model' in wrong.stderr
    none = run_fastbit('compare', folder, '--arch', 'tf_efficientnet_b0', '--size', 32, '--out', 'none', cwd=tmp_path)
    assert none.returncode == 2 and 'failed' in none.stdout and 'every run failed' in none.stderr


def test_images_are_compared_by_their_contents(folder):
    from fastbit.studies.trials import data_digest
    from fastbit.data import check_images, image_table
    digest = lambda: data_digest(image_table(folder), check_images(image_table(folder).path))
    before, path = digest(), next(folder.rglob('*.png'))
    os.utime(path)
    assert digest() == before
    old, other = path.stat(), sorted(folder.rglob('*.png'))[-1]
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert digest() != before


def test_recipe_objects_are_honored(folder, tmp_path):
    args = dict(archs='test_efficientnet=random', size=32, num_workers=0, verbose=False, top=1, out=tmp_path/'board')
    recipes = [OneCycle(epochs=2, lr=.02), HeadOnly(epochs=3), 'head', HeadOnly()]   # the last two are one
    board = leaderboard(folder, recipes=recipes, **args)
    names = {'probe', 'onecycle(epochs=2, lr=0.02)', 'head(epochs=3)', 'head'}
    assert len(board.rows) == 4 and set(board.rows.recipe) == names and not board.failures
    run = tmp_path/'board'/'runs'/module.run_name('test_efficientnet (random)', 'onecycle(epochs=2, lr=0.02)')
    settings = json.loads((run/'results.json').read_text())['settings']
    assert (settings['recipe'], settings['epochs'], settings['lr']) == ('onecycle', 2, .02)
    assert leaderboard(folder, recipes=recipes, **args).rows.equals(board.rows)   # found again
    assert all(f'runs/{p.parent.name}/report.html' in board.html() for p in (tmp_path/'board').glob('runs/*/report.html'))


@pytest.mark.parametrize('given, error, words', [
    (dict(archs=['test_efficientnet=random', 'test_efficientnet=mine.pth']), FileNotFoundError, "archs=['test_efficientnet=mine.pth']: no such file"),
    (dict(recipes=[OneCycle()], epochs=3), ValueError, 'epochs and a recipe object: pass it to OneCycle()'),
    (dict(recipes=[OneCycle(epochs=0)]), ValueError, 'epochs=0'), (dict(epochs='x', recipes='onecycle'), ValueError, "epochs='x'"), (dict(epochs=3), ValueError, 'not to auto'),
    (dict(recipes=['two_cycle']), ValueError, "unknown recipe 'two_cycle'"),
    (dict(recipes=3), TypeError, 'recipes=3 must be a list of names'), (dict(archs=3), TypeError, 'archs=3 must be a list of names')])
def test_what_cannot_run_is_refused_before_the_images_are_read(given, error, words, tmp_path, monkeypatch):
    opened = sys.modules['fastbit.studies.leaderboard']
    monkeypatch.setattr(opened, 'image_dataloaders', lambda *a, **k: pytest.fail('images were read'))
    with pytest.raises(error) as e: leaderboard(tmp_path, out=tmp_path/'board', **{'archs': ['test_efficientnet=random']} | given)
    assert words in str(e.value) and not (tmp_path/'board').exists()
