"The model card: whole, harmless, and never read"
import re

import numpy as np, pytest
from huggingface_hub import ModelCard
from PIL import Image

from fastbit.export import CardFacts, load_artifact, load_predictor, model_card, save_artifact
from fastbit.export.card import CARD
from fastbit.export.ensemble import clear_ensemble, save_ensemble
from test_artifact import GOLDEN, about_net, some_net

EVIL = ('---\nlicense: mit\n---', '```\n# Results\n', '<img src=x onerror=alert(1)>', '| a | b |', '\udcff\x1b[31m', '{{ 1/0 }}', '[x](javascript:y)')


def test_hostile_names_stay_names(tmp_path):
    "In the front matter, in tables and in sentences; the file is UTF-8"
    facts = CardFacts(data=EVIL[0], class_counts=dict.fromkeys(EVIL, 3), limits=EVIL, chosen=EVIL, split=EVIL[1], training=EVIL[2])
    about = about_net(classes=EVIL, evaluation=dict(part=EVIL[3], n=9, accuracy=.5, low=.4, high=.6, loss=1., macro_f1=.5))
    save_artifact(tmp_path/'model', some_net(classes=len(EVIL)), about, card=facts)
    card = ModelCard.load(tmp_path/'model'/CARD)
    assert card.data.to_dict().get('license') is None and card.data.eval_results[0].metric_value == .5
    lines = card.text.splitlines()
    assert sum(line.startswith('#') for line in lines) == 8 and sum(line.startswith('```') for line in lines) == 4
    assert '\x1b' not in card.content and not re.search(r'(?<!\\)(<|\[)', card.text.replace('[fastbit](https', ''))
    cells = [line.replace('\\|', '').count('|') for line in lines if line.startswith('|')]
    assert set(cells) == {3}


def test_nothing_reads_the_card(tmp_path):
    "Not for loading, and not for a digest: it is for people, who may rewrite or delete it"
    save_artifact(tmp_path/'model', some_net(), about_net())
    image = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    before = load_predictor(tmp_path/'model', 'cpu').predict(image)
    for change in (lambda f: f.write_bytes(b'\xff\x00 no card'), lambda f: f.unlink(), lambda f: f.mkdir()):
        change(tmp_path/'model'/CARD)
        assert load_predictor(tmp_path/'model', 'cpu').predict(image).equals(before)


def test_the_same_model_has_the_same_card(tmp_path):
    for name in 'ab': save_artifact(tmp_path/name, some_net(), about_net())
    assert (tmp_path/'a'/CARD).read_bytes() == (tmp_path/'b'/CARD).read_bytes()
    save_artifact(tmp_path/'a', some_net(1), about_net(), overwrite=True)
    assert load_artifact(tmp_path/'a').about.sha256 in (tmp_path/'a'/CARD).read_text()
    assert model_card(load_artifact(tmp_path/'a').about) == (tmp_path/'a'/CARD).read_text()


def test_folders_of_earlier_versions_have_none():
    for folder in GOLDEN.glob('artifact-*'): assert not (folder/CARD).exists() and 'Limits' in model_card(load_artifact(folder).about)


def test_an_ensemble_has_one_card_and_its_members_have_theirs(tmp_path):
    for i in range(2): save_artifact(tmp_path/f'fold-{i}', some_net(i), about_net())
    save_ensemble(tmp_path/'model', [tmp_path/f'fold-{i}' for i in range(2)])
    card = ModelCard.load(tmp_path/'model'/CARD)
    assert 'The mean of 2 models predicts' in card.text and card.data.to_dict()['library_name'] == 'fastbit' and (tmp_path/'model'/'1'/CARD).exists()
    clear_ensemble(tmp_path/'model')
    assert not list((tmp_path/'model').iterdir())
