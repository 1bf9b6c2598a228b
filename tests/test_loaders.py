"Pixels, batches and answers as people's programs ask for them: labels that come back exactly, other loaders, other start methods, 16 bits"
import contextlib, io, shutil
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from conftest import TINY, picture, write_folder
from fastbit.cli import main
from fastbit.data import image_dataloaders
from fastbit.learner import transfer_learner
from fastbit.tables import csv_text

QUICK = ('--arch', 'test_efficientnet', '--weights', 'random', '--size', '32', '--device', 'cpu', '--workers', '0')


# CSV

ODD = ['+', '=sum.png', '-1', '@x', "'quoted'", 'say "hi"', 'a, b', ' leading', 'trailing ', 'new\nline', 'carriage\rreturn', 'both\r\n', '\ttab', '1e5', 'NA', 'null', 'ü', '']


def read_back(text): return pd.read_csv(io.BytesIO(text.encode()), dtype=str, keep_default_na=False)


@pytest.mark.parametrize('odd', [ODD, [o for o in ODD if '\r' not in o]], ids=['with returns', 'without'])
def test_a_table_is_read_back_exactly(odd):
    df = pd.DataFrame({'path': odd, '+label': odd[::-1], 'a\r': 'x'})
    assert read_back(csv_text(df)).equals(df) and read_back(csv_text(df.drop(columns='a\r'))).equals(df.drop(columns='a\r'))


def test_what_predict_and_baseline_write_is_what_evaluate_reads(tmp_path, monkeypatch, capsys):
    "Classes and files that a spreadsheet would run"
    monkeypatch.chdir(tmp_path)
    classes = ['+', '=x', '-c']
    data = write_folder(tmp_path/'data', dict.fromkeys(classes, 8))
    for c in classes: (data/c/'000.png').rename(data/c/'=sum.png')
    assert main(['baseline', str(data), *QUICK, '--recipe', 'head', '--epochs', '1', '--out', 'out']) == 0
    rows = pd.read_csv('out/predictions.csv', dtype=str)
    assert set(rows.label) == set(classes) and all(Path(p).exists() for p in rows.path)
    assert main(['evaluate', 'out', 'out/predictions.csv']) == 0
    assert f'{len(rows)} images' in capsys.readouterr().out
    assert main(['predict', 'out', str(data/'+'), '--csv']) == 0
    answers = read_back(capsys.readouterr().out)
    assert str(data/'+'/'=sum.png') in list(answers.path) and set(answers.prediction) <= set(classes)
    monkeypatch.chdir(data/'+')
    assert main(['predict', str(tmp_path/'out'), '=sum.png', '--spreadsheet', '--probs']) == 0
    shown = read_back(capsys.readouterr().out)
    assert shown.path.item() == "'=sum.png" and shown.prediction.item() in {"'" + c for c in classes}
