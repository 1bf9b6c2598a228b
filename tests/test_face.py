"The first things that a visitor sees: the README, its picture and its numbers, and the overview pages"
import json, re
from pathlib import Path

import pandas as pd, pytest, yaml
from PIL import Image

from conftest import import_tool

ROOT = Path(__file__).parents[1]
README = (ROOT/'README.md').read_text()


def size_of(file) -> tuple:
    with Image.open(file) as img: return img.size


@pytest.fixture(scope='module')
def overview():
    "The tool that makes overview pages"
    return import_tool('overview')


def test_the_readme_is_short_and_begins_with_what_it_gives():
    assert len(README.encode()) <= 6*1024
    first, sentence = README.splitlines()[:2]
    assert first == '# fastbit' and sentence.startswith('> Point fastbit at a folder of images and get')
    blocks = re.findall(r'```(\w*)\n(.*?)```', README, re.S)
    commands, lines = blocks[1][1], blocks[2][1]
    assert 'fastbit check photos' in commands and 'fastbit baseline photos' in commands and len(lines.splitlines()) == 4
    assert len(next(code for lang, code in blocks if lang == 'python').splitlines()) == 8
    assert re.search(r'\*\*What it is not for:\*\* \w+', README)


def test_the_readme_s_picture_is_there_light_and_dark():
    files = [ROOT/f for f in re.findall(r'"(nbs/images/[\w.]+)"', README)]
    sizes = [size_of(f) for f in files]
    assert [f.stem for f in files] == ['phone_dark', 'phone_light', 'report_dark', 'report_light']
    assert sizes[0] == sizes[1] and sizes[0][0] == 2*390 and sizes[2] == sizes[3] and sizes[2][0] >= 1280
    assert README.count('prefers-color-scheme: dark') == 2 and all(f.stat().st_size < 250_000 for f in files)


def test_the_readme_s_table_is_that_of_the_benchmarks():
    "Mean over six sets of the means over five seeds, 20 images per class, as the page Benchmarks computes them"
    rows = pd.DataFrame([json.loads(line) for line in (ROOT/'benchmarks'/'recipes'/'results.jsonl').read_text().splitlines()])
    rows = rows[(rows.seed < 5) & (rows.k == 20) & (rows['size'] == 64) & (rows.arch == 'tf_efficientnet_lite0')]
    means = rows.groupby(['recipe', 'set'])[['accuracy', 'seconds']].mean().groupby('recipe').mean()
    named = dict(auto='fastbit, the default', logistic='--recipe head', timm="timm's usual", fastai_20_tta='fastai `fine_tune(19)`', autogluon="AutoGluon's settings")
    for recipe, words in named.items():
        line = next(o for o in README.splitlines() if o.startswith('|') and words in o).replace('*', '')
        accuracy, seconds = [o.strip() for o in line.split('|')[2:4]]
        assert accuracy == f'{means.accuracy[recipe]:.1%}' and float(seconds) == round(means.seconds[recipe]), line
    ahead = means.accuracy['auto'] - means.accuracy['fastai_20_tta']
    assert f'{100*ahead:.1f} points ahead' in README and means.seconds['auto'] < means.seconds['fastai_20_tta']


def test_the_readme_s_times_are_rows_of_the_results():
    rows = [json.loads(line) for line in (ROOT/'benchmarks'/'results.jsonl').read_text().splitlines()]
    head = next(r['seconds'] for r in rows if r['question'] == 'head training, 5 epochs, fastai / fastbit' and r['capability'] == 'AVX512')
    words = re.search(r'from files in ([\d.]+) s where fastai takes ([\d.]+) s, and in ([\d.]+) s', README).groups()
    assert words == (f"{head['cold']:.1f}", f"{head['fastai']:.0f}", f"{head['warm']:.1f}")


def test_each_page_of_an_overview_has_a_sentence_and_a_picture(overview, tmp_path):
    found = overview.sections(yaml.safe_load((ROOT/'nbs'/'_quarto.yml').read_text()))
    assert set(found) == set(overview.LINES) == {f'{o}/index.md' for o in ('tutorials', 'how_to', 'concepts', 'coming_from')}
    nbs = ROOT/'nbs'
    for page, (_, pages) in found.items():
        cards = [overview.card(nbs, tmp_path, p, nbs/p, page) for p in pages]
        assert len({c.title for c in cards}) == len(cards) > 5
        for c in cards:
            assert c.line and c.picture, c
            picture = c.picture.removeprefix('../')
            assert (nbs/picture).is_file() or size_of(tmp_path/picture) == (480, 320)


def test_an_overview_is_in_the_order_of_the_sidebar(overview):
    cards = [overview.Card('b.html', 'Second <b>', 'with `code`', ''), overview.Card('a.html', 'First', 'line', '../p.webp')]
    text = overview.overview('Title', 'A line', cards)
    assert text.index('b.html') < text.index('a.html') and 'Second &lt;b&gt;' in text and '<code>code</code>' in text and text.count('<img') == 1


def test_the_changelog_is_a_page(overview, tmp_path):
    overview.write_changelog(ROOT/'CHANGELOG.md', tmp_path)
    text = (tmp_path/'changelog.md').read_text()
    assert text.count('\n# ') == 0 and '## Unreleased' in text


def test_each_tutorial_says_where_to_open_it_and_keeps_its_promise():
    "Times measured by tools/tutorials.py on two cores, less than two minutes each"
    tutorials = import_tool('tutorials')
    times = json.loads(tutorials.TIMES.read_text())
    pages = sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))
    assert set(times) == {p.stem for p in pages} and max(times.values()) < tutorials.PROMISE
    for p in pages:
        nb = json.loads(p.read_text())
        assert tutorials.opening(p.stem, times[p.stem]) in ''.join(nb['cells'][1]['source']).splitlines(), p.stem
        code = [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']
        assert tutorials.IN_COLAB in code[:2], p.stem
        assert not [o for c in nb['cells'] for o in c.get('outputs', []) if o.get('name') == 'stderr'], p.stem
