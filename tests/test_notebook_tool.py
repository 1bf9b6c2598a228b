"""How `make test` runs notebooks: one process for each, and what ends badly is named"""
import json, os, signal, sys
from pathlib import Path
import pytest
from conftest import import_tool

tool = import_tool('notebooks')
seen = []


def behave(file, root):
    "Do what the name of the file says, in its process"
    if seen: sys.exit(3)
    seen.append(file)
    if file.stem == 'killed': os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(1 if file.stem == 'bad' else 0)


def test_each_notebook_runs_in_a_process_that_nothing_else_ran_in(tmp_path):
    files = [tmp_path/f'{name}.ipynb' for name in ('one', 'two', 'bad', 'three', 'killed')]
    done = tool.run_all(files, 2, behave)
    assert {f.stem: status for f, (status, _) in done.items()} == dict(one=0, two=0, bad=1, three=0, killed=-9)
    assert not seen


def test_the_report_names_what_failed(capsys):
    done = {Path('nbs/a/good.ipynb'): (0, 2.), Path('nbs/a/bad.ipynb'): (1, 3.), Path('nbs/b/gone.ipynb'): (-11, 1.)}
    assert tool.report(done, timing=True) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == ['   3.0 s  a/bad.ipynb', '   2.0 s  a/good.ipynb', '   1.0 s  b/gone.ipynb',
                                '1 of 3 notebooks passed']
    assert err.splitlines() == ['a/bad.ipynb failed', 'b/gone.ipynb was ended by signal 11']
    assert tool.report({Path('good.ipynb'): (0, 1.)}, timing=False) == 0
    assert tool.report({}, timing=False) == 1   # a folder without notebooks


@pytest.mark.parametrize('code, status', [('assert 1 + 1 == 2', 0), ('assert 1 + 1 == 3', 1)])
def test_a_notebook_passes_or_fails_by_its_cells(tmp_path, code, status, capfd):
    cell = dict(cell_type='code', id='a', metadata={}, execution_count=None, outputs=[], source=[code])
    file = tmp_path/'one.ipynb'
    file.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    assert tool.run_all([file], 1)[file][0] == status
    assert ('AssertionError' in capfd.readouterr().err) == bool(status)


def test_the_notebooks_are_all_that_nbdev_would_run_and_long_ones_come_first():
    found = tool.notebooks(tool.ROOT/'nbs')
    names = [f.relative_to(tool.ROOT/'nbs').as_posix() for f in found]
    here = {p.relative_to(tool.ROOT/'nbs').as_posix() for p in (tool.ROOT/'nbs').rglob('*.ipynb')
            if not any(o.startswith(('.', '_')) for o in p.relative_to(tool.ROOT/'nbs').parts)}
    assert set(names) == here
    assert names[0].startswith('tutorials/') and names[-1].startswith('training/')
