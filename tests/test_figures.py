"Figures in the prose of pages: they are those of the benchmarks, of kept outputs and of the authors, and every page says where they come from"
import inspect, json, re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pandas as pd, pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NBS = ROOT/'nbs'
RESULTS = [json.loads(line) for line in (ROOT/'benchmarks'/'results.jsonl').read_text().splitlines()]
PAGES = sorted(p for p in NBS.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(NBS).parts))


def cells_of(page) -> list: return json.loads((NBS/page).read_text())['cells']


def prose(page) -> str: return '\n\n'.join(''.join(c['source']) for c in cells_of(page) if c['cell_type'] == 'markdown')


def shown(page) -> str:
    "What code cells and their kept outputs say, without tags"
    found = []
    for c in cells_of(page):
        if c['cell_type'] != 'code': continue
        found.append(''.join(c['source']))
        for o in c['outputs']:
            data = o.get('data', {})
            found += [''.join(o.get('text', '')), ''.join(data.get('text/plain', '')), re.sub(r'<[^>]+>', ' ', ''.join(data.get('text/html', '')))]
    return '\n'.join(found)


def row(question, body='tf_efficientnet_lite0', capability='AVX512') -> dict:
    "The row of results.jsonl that answers a question on a processor with AVX-512"
    found = [r for r in RESULTS if r['question'] == question and r['arch'] == body and capability in r.get('capability', r['machine'])]
    assert len(found) == 1, (question, len(found))
    return found[0]


def recipes(k) -> pd.DataFrame:
    "Accuracy and seconds per recipe, as the page Benchmarks computes them"
    rows = pd.DataFrame([json.loads(line) for line in (ROOT/'benchmarks'/'recipes'/'results.jsonl').read_text().splitlines()])
    rows = rows[(rows.seed < 5) & (rows.k == k) & (rows['size'] == 64) & (rows.arch == 'tf_efficientnet_lite0')]
    return rows.groupby(['recipe', 'set'])[['accuracy', 'seconds']].mean().groupby('recipe').mean()


def table_row(page, starts) -> list:
    "Cells of the only row of a table that starts with these words, without marks of bold"
    found = [line for line in prose(page).splitlines() if line.startswith(f'| {starts}')]
    assert len(found) == 1, (page, starts, found)
    return [o.strip().replace('*', '') for o in found[0].strip('|').split('|')]


# Figures of the benchmarks

def test_fastai_s_table_is_that_of_the_results():
    page = 'coming_from/fastai_users.ipynb'
    def times(starts, question, theirs, ours, digits='.1f'):
        r = row(question)
        assert table_row(page, starts)[1:4] == [f"{r['seconds'][theirs]:{digits}} s", f"{r['seconds'][ours]:.1f} s", f"{r['value']:.2g} times"], starts
    times('head, 5 epochs, from', 'head training, 5 epochs, fastai / fastbit', 'fastai', 'cold')
    times('one epoch of', 'one epoch of training everything, fastai / fastbit', 'fastai', 'fastbit')
    many = row('head training, 20 epochs, fastai / fastbit')
    assert table_row(page, 'head, 20 epochs')[1:4] == [f"{many['seconds']['fastai']:.0f} s (4 × 5 epochs)", f"{many['seconds']['cold']:.1f} s", f"{many['value']:.0f} times"]
    head = row('head training, 5 epochs, fastai / fastbit')['seconds']
    assert table_row(page, 'the same run again')[1:3] == [f"{head['fastai']:.1f} s", f"{head['warm']:.1f} s"]
    assert table_row(page, 'TTA, default views')[3] == f"{row('default TTA, time, fastai / fastbit')['value']:.0f} times"
    for starts, question in (('accuracy of the head', 'head accuracy after 5 epochs, fastbit; fastai'), ('accuracy with TTA', 'default TTA, accuracy, fastbit; fastai')):
        ours, theirs = map(float, row(question)['value'].split('; '))
        assert table_row(page, starts)[1:3] == [f'{theirs:.1%}', f'{ours:.1%}'], starts


def test_accuracies_of_recipes_are_those_of_the_benchmarks():
    few, many = recipes(20), recipes(48)
    for name, recipe in (('`auto`', 'auto'), ('`onecycle`: the head, then all layers', 'onecycle'), ('`head`', 'logistic')):
        assert f'| {name} | {few.accuracy[recipe]:.1%} | {few.seconds[recipe]:.0f} |' in prose('concepts/recipe.ipynb')
    words = (f'reach {few.accuracy["autogluon"]:.1%} in 20 epochs, and fastbit\'s default {few.accuracy["auto"]:.1%}; '
             f'with 48 per class {many.accuracy["autogluon"]:.1%} and {many.accuracy["auto"]:.1%}')
    assert words in prose('coming_from/autogluon_users.ipynb')


def test_autogluon_s_steps_are_those_of_its_batches():
    "20 epochs of batches of 128, of 20 images per class"
    classes = dict(clipart=10, digits=10, oxygen=7, stamps=8, terrain=14, units=19)
    steps = [20*-(-20*n//128) for n in classes.values()]
    for page in ('benchmarks.ipynb', 'coming_from/autogluon_users.ipynb'): assert f'{min(steps)} to {max(steps)} steps' in prose(page), page


def test_mixup_in_the_upper_stages_did_what_the_page_says():
    rows = pd.DataFrame([json.loads(line) for line in (ROOT/'benchmarks'/'recipes'/'results.jsonl').read_text().splitlines()])
    rows = rows[(rows.seed >= 100) & (rows.k == 16) & (rows['size'] == 64)]
    wide = rows.pivot_table(index=['set', 'k', 'seed'], columns='recipe', values=['accuracy', 'loss'])
    a, l = (wide[m].upper_mix - wide[m].upper for m in ('accuracy', 'loss'))
    numbers = dict(zip(('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'), range(1, 9)))
    words = re.search(r'over (\w+) draws of (\w+) sets with 16 images per class,\s`mixup=.4` changed the accuracy by (\S+) ± (\S+) points and the loss by (\S+) ± (\S+) nats', prose('training/18_upper.ipynb'))
    assert (numbers[words[1]], numbers[words[2]]) == (a.count(), a.dropna().index.get_level_values('set').nunique())
    assert words.groups()[2:] == (f'{100*a.mean():.1f}', f'{100*a.sem():.1f}', f'{l.mean():.2f}', f'{l.sem():.2f}')


def test_reasons_of_constants_are_rows_of_the_benchmarks():
    "Standardized features against fastbit's scaling, half the steps of the upper stages, and five images per class"
    rows = pd.DataFrame([json.loads(line) for line in (ROOT/'benchmarks'/'recipes'/'results.jsonl').read_text().splitlines()])
    rows = rows[(rows['size'] == 64) & (rows.arch == 'tf_efficientnet_lite0')]
    def differences(a, b, k, measured='accuracy'):
        wide = rows[rows.k == k].pivot_table(index=['set', 'seed'], columns='recipe', values=measured)
        return (wide[a] - wide[b]).dropna()
    code = lambda module: (ROOT/'fastbit'/module).read_text()
    worse, higher = (differences('linear_probe', 'logistic', 20, m).groupby('set').mean() for m in ('accuracy', 'loss'))
    assert len(worse) == 6 and f'0 to {higher.max():.1f} nats higher, and the accuracy 0 to {-100*worse.min():.0f} points lower' in code('training/head.py')
    assert -.05 < higher.min() < .05 and -.01 < worse.max() < .01
    half = differences('upper_150', 'upper', 16)
    assert f'half as many cost {-100*half.mean():.0f} points with 16 images per class' in code('training/upper.py')
    wins = (differences('upper', 'logistic', 5).groupby('set').mean() > 0)
    assert (wins.sum(), len(wins)) == (3, 6) and 'with 5, the upper stages win on half of six sets' in code('baseline/auto.py')


def test_speeds_in_module_pages_are_rows_of_the_results():
    asked = row('step on cached features, all callbacks asked / those that have the event')['value']
    assert f'makes a step on cached features {asked:.1f} times as long' in prose('training/08_loop.ipynb')
    assert f'a step on cached features is {asked:.1f} times as long' in (ROOT/'fastbit'/'training'/'loop.py').read_text()
    batches = [r['value'] for r in RESULTS if r['question'].endswith('fastbit / image by image')]
    assert (round(min(batches)), round(max(batches))) == (4, 10)
    assert 'four to ten times as fast' in prose('data/15_batches.ipynb') and '4 to 10 times as fast' in (ROOT/'CHANGELOG.md').read_text()
    gb = row('1,000,000 files listed and split, peak memory in GB')['value']
    assert f'a million images needs {gb:.1f} GB to be listed and split' in prose('how_to/memory.ipynb')
    assert f'listed and split without importing PyTorch, in {gb:.1f} GB' in (ROOT/'CHANGELOG.md').read_text()
    assert row('1,000,000 files listed and split, seconds')['value'] < 10   # "in seconds"


def test_prose_of_the_results_is_that_of_their_rows():
    page = prose('results.ipynb')
    head = row('head training, 5 epochs, fastai / fastbit')
    parts = re.search(r'a first run of ([\d.]+) s (?:\([^)]*\) )?spends ([\d.]+) s on features, .* ([\d.]+) s on the learner and ([\d.]+) s on the fit', page).groups()
    assert parts[0] == f"{head['seconds']['cold']:.1f}" and sum(map(float, parts[1:])) == pytest.approx(float(parts[0]))
    passes = int(re.search(r'Five epochs of fastai take (\d+) forward passes', page)[1])
    assert passes == round(head['seconds']['fastai']/head['forward'])
    step = row('training everything at 128 px, images per second, fastbit / fastbit with fused=False', 'BiT-M-R50x1')['value']
    assert f'a step is {step} times as fast as with `fused=False`' in page


# Figures of other pages and of the authors

def published(data, per_class) -> list:
    "Smallest, median and largest accuracy of BiT-M-R50x1 in the table of published figures; the median alone if that is all"
    found = re.findall(rf'^\| {data} \| {per_class} \| ([^|]*) \|', prose('results.ipynb'), re.M)
    return re.findall(r'[\d.]+', found[0].replace('*', ''))


def test_published_figures_are_those_of_the_results():
    low, median, high = published('CIFAR-10', 1)
    for page in ('tutorials/few_examples.ipynb', 'concepts/hyperrule.ipynb'): assert f'between {low}% and {high}%' in prose(page), page
    assert f'with median {median}%' in prose('concepts/hyperrule.ipynb')
    five, whole = published('CIFAR-10', 5)[1], published('CIFAR-10', 'all')[0]
    assert f'{median}% with one image per class, {five}% with five and {whole}% with all' in prose('tutorials/few_examples.ipynb')


def test_the_first_run_is_the_same_on_every_page():
    readme = (ROOT/'README.md').read_text()
    accuracy, ends, n = re.search(r'accuracy    ([\d.]+%) \(95% CI ([\d.–]+%)\) on (\d+) held-out', readme).groups()
    assert f'accuracy    {accuracy} (95% CI {ends}) on {n} held-out images, {round(int(n)*float(accuracy[:-1])/100)} correct' in prose('quick_start.ipynb')
    low, high = (round(float(o.rstrip('%'))) for o in ends.split('–'))
    assert f'A report: {float(accuracy[:-1]):.1f}% accuracy, 95% CI {low}–{high}%' in readme


def test_how_much_groups_matter_is_what_the_tutorial_shows():
    found = re.findall(r'^accuracy    ([\d.]+)%', shown('tutorials/groups.ipynb'), re.M)
    random, grouped = map(float, found[:2])
    assert f'{random:.0f}% instead of {grouped:.0f}%' in prose('how_to/groups.ipynb')


def test_the_cost_of_the_upper_stages_is_that_of_the_table():
    page = 'concepts/choosing.ipynb'
    words = ' '.join(shown(page).split())
    rows = re.findall(r'[a-z]\S+ [\d.]+ ([\d.]+) ([\d.]+) [\d.]+(?= |$)', words[words.rindex('upper stages (images/s)'):])
    low, high = map(int, re.search(r'takes (\d+) to (\d+)% of the time of training all layers', prose(page)).groups())
    assert len(rows) >= 4 and all(low <= 100*float(every)/float(upper) <= high for upper, every in rows), rows


def test_counts_of_what_there_is():
    "Tutorials, and families whose ONNX files are tested"
    words = {12: 'twelve', 13: 'thirteen', 14: 'fourteen', 15: 'fifteen'}
    assert f'{words[len(list((NBS/"tutorials").glob("*.ipynb")))]} tutorials' in (ROOT/'CHANGELOG.md').read_text()
    import test_onnx_bodies as onnx
    assert f'each of {len(onnx.FAST) + len(onnx.SLOW)} families' in prose('export/04_onnx.ipynb')


def test_constants_in_prose_are_those_of_the_code():
    from fastbit.bodies import build_body
    from fastbit.bodies.stages import body_stages
    from fastbit.core.device import LARGE_BATCH
    from fastbit.core.store import CACHE_GB
    from fastbit.export.int8 import CALIBRATION
    from fastbit.studies import serve
    from fastbit.training import compiled, guards
    from fastbit.training.checkpoint import SAVE_SECONDS
    gpu = prose('concepts/gpu.ipynb')
    assert f'{LARGE_BATCH} images or more' in gpu and guards._LOOK_EVERY == 16 and 'noticed within sixteen steps' in gpu
    assert round(compiled._MOST_SECONDS/compiled._LEAST_GAIN/60) == 7 and 'about seven minutes or more' in gpu
    for page in ('concepts/caching.ipynb', 'how_to/memory.ipynb'): assert f'at most {CACHE_GB:.0f} GB' in prose(page), page
    assert f"the cache's {CACHE_GB:.0f} GB" in prose('how_to/huge.ipynb')
    assert f'at most every {SAVE_SECONDS:.0f} seconds' in prose('how_to/resume.ipynb')
    assert f'up to {CALIBRATION} *training* images' in prose('how_to/onnx.ipynb')
    assert f'{inspect.signature(serve).parameters["max_mb"].default:.0f} MB by default' in prose('how_to/serve.ipynb')
    stages = [len(body_stages(build_body(arch, 2, 'random'))) for arch in ('efficientnet_b0', 'BiT-M-R50x1')]
    assert '{} for EfficientNet-B0, {} for BiT R50x1'.format(*stages) in prose('coming_from/fastai_users.ipynb')


def requirements_of(name, extras=()):
    for text in distribution(name).requires or ():
        r = Requirement(text)
        if r.marker is None or any(r.marker.evaluate(dict(extra=e)) for e in ('', *extras)): yield r


def test_the_size_of_an_installation():
    "Of all files of fastbit's requirements and theirs, with and without what only GPUs need"
    version, = re.findall(r'the files of PyTorch ([\d.]+\d)', prose('install.ipynb'))
    if not distribution('torch').version.startswith(version): pytest.skip(f'not PyTorch {version}')
    queue, sizes, libraries = list(requirements_of('fastbit')), {}, 0
    while queue:
        r = queue.pop()
        if r.name.lower() in sizes: continue
        try: files = distribution(r.name).files
        except PackageNotFoundError: continue   # for another system
        bytes_of = {f.name: f.locate().stat().st_size for f in files if f.locate().exists()}
        sizes[r.name.lower()] = sum(f.locate().stat().st_size for f in files if f.locate().exists())
        if r.name == 'torch': libraries = sum(n for name, n in bytes_of.items() if re.match(r'libtorch_cuda|libtorch_nvshmem|libc10_cuda', name))
        queue += requirements_of(r.name, r.extras)
    gpu = sum(n for name, n in sizes.items() if name.startswith(('nvidia-', 'cuda-')) or name == 'triton')
    if gpu < 1e9: pytest.skip('PyTorch without the libraries for GPUs')
    whole, least = re.search(r'\(([\d.]+) GB in all on Linux with its GPU libraries, ([\d.]+) GB without them', prose('install.ipynb')).groups()
    total = sum(sizes.values())
    assert total/1e9 == pytest.approx(float(whole), abs=.5) and (total - gpu - libraries)/1e9 == pytest.approx(float(least), abs=.35), sizes
    assert f'({whole} GB on Linux' in prose('index.ipynb')


# Every figure names its source

FIGURE = re.compile(r'(?<![\w.,`:/-])(\d[\d,]*(?:\.\d+)?|\.\d+) ?(%|seconds?\b|minutes?\b|hours?\b|days?\b|ms\b|µs\b|s\b|kB\b|MB\b|GB\b|TB\b|times\b|points?\b|images/s|images per second)')
# a link, a script, a test, a paper, or the command that measures it on the reader's machine
SOURCE = re.compile(r'\]\([^)]+\)|benchmarks/|tests/|tools/|\bet al\.|arXiv|--dry-run')
# what is not a measurement: options and their defaults, definitions, examples, and sums that the sentence itself makes
NOT_MEASURED = (
    r'9[05]% (CI|confidence|of 100|interval|precision|prediction interval|coverage)', r'its 90% interval', r'90% conformal', r'--budget', r'ten minutes', r'less than a minute', r'contain the true class for 90%',
    r'of predictions with 80%', r'95 of 100', r'With 95 healthy', r'every 30 seconds', r'at most 4 GB', r"the cache's 4 GB", r'32 MB by default', r'budget=', r'`time=0\.5` \(hours\)', r'time_limit=600',
    r'is right 99% of the time', r'for 99% it takes', r'at which 95% of', r'For 90% accuracy', r'right in 95%', r'30, 60 and 90%', r'what "95%" means', r'"100% to 100%"', r'83% and 90%', r'What "95% CI',
    r'than 95% of the validation images', r'A baseline', r'95% confidence, 59 images', r'two percentage points', r'Take 110 kB', r'take 5 kB', r'5 GB \(`cache_gb=6`\)', r'has 20 GB and the images have 11 TB',
    r'runs? in about [\d.]+ (seconds|minutes) on two cores',   # tools/tutorials.py measures them, tests/test_face.py compares
    r'At a thousand images per second', r'takes one to two minutes', r'looks 10,000 times', r'170 megapixels', r'with 90% right\?', r'gives a label with 80%', r'prove a precision of 91%', r'An accuracy of 90% is nothing',
    r'Errors that fall by a fifth', r'in float32, 0\.7 MB')


def paragraphs(page):
    "(line of prose, its paragraph) without fenced code; a table is one paragraph with the one above it"
    text = re.sub(r'^```.*?^```', '', prose(page), flags=re.M | re.S)
    blocks = re.split(r'\n\s*\n', text)
    for before, block, after in zip(['', *blocks], blocks, [*blocks[1:], '']):
        around = before + block + after if block.lstrip().startswith('|') else block
        for line in block.splitlines(): yield line, around


def unsourced(page) -> list:
    "Figures in the prose of a page that neither an output of it shows nor their paragraph gives a source for"
    seen = shown(page)
    found = []
    for line, around in paragraphs(page):
        if SOURCE.search(around) or any(re.search(o, line) for o in NOT_MEASURED): continue
        found += [f'{m[0]!r} in {line[:140]!r}' for m in FIGURE.finditer(line) if not re.search(rf'(?<![\d.]){re.escape(m[1])}(?!\d)', seen)]
    return found


@pytest.mark.parametrize('page', [p.relative_to(NBS).as_posix() for p in PAGES])
def test_every_figure_on_a_page_names_its_source(page):
    assert not unsourced(page), 'give a link, a script or a test in the paragraph, or show the figure in an output of the page; options and examples go into NOT_MEASURED'


def test_a_figure_without_a_source_is_found(tmp_path, monkeypatch):
    "Here and nowhere else"
    cells = [dict(cell_type='markdown', source='# A\n> B'), dict(cell_type='markdown', source='It takes 7.5 s.\n\nThat is 3 times as fast as [there](x.ipynb).\n\nAnd 12% of them.'),
             dict(cell_type='code', source='f(x)', outputs=[dict(output_type='stream', text='12%')])]
    (tmp_path/'page.ipynb').write_text(json.dumps(dict(cells=cells)))
    monkeypatch.setitem(globals(), 'NBS', tmp_path)
    assert unsourced('page.ipynb') == ["'7.5 s' in 'It takes 7.5 s.'"]
