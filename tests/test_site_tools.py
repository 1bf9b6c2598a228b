"The parts of the tool that builds the site, without a site"
import csv, functools, importlib, io, shlex, sys
from pathlib import Path

import pytest
from fastcore.nbio import mk_cell

from conftest import import_tool
from fastbit.cli.parser import make_parser

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def docs():
    return import_tool('docs')


@pytest.fixture(scope='module')
def folding(docs): return sys.modules['folding']

@pytest.fixture(scope='module')
def definitions(docs): return sys.modules['definitions']


@pytest.mark.parametrize('full_name, begins', [
    ('fastbit.training.learner:transfer_learner', 'def transfer_learner('), ('fastbit.training.learner:TransferLearner', 'class TransferLearner('), ('fastbit.training.learner:TransferLearner.lr_table', 'def lr_table('),
    ('fastbit.hyperrule:HyperRule', 'class HyperRule'), ('fastbit.hyperrule:HyperRule.for_data', 'def for_data('), ('fastbit.core.text:track', 'def track(')])
def test_a_source_link_leads_to_the_definition(definitions, full_name, begins):
    "A function, a class, a method patched in from elsewhere, a dataclass, a class method, a generator"
    module, names = full_name.split(':')
    names = names.split('.')
    sym = functools.reduce(getattr, names, importlib.import_module(module))
    file, _, line = definitions.source_link(sym, full_name.replace(':', '.')).rpartition('/blob/main/')[2].partition('#L')
    here = (ROOT/file).read_text().splitlines()[int(line)-1:]
    assert next(o.strip() for o in here if not o.strip().startswith('@')).startswith(begins)   # a decorator belongs to it


def test_a_source_link_that_leads_nowhere_fails_the_build(docs, tmp_path):
    (tmp_path/'fastbit').mkdir()
    (tmp_path/'fastbit'/'a.py').write_text('x = 1\ny = 2\n')
    site = tmp_path/'site'
    site.mkdir()
    links = dict(good='fastbit/a.py#L2', part='fastbit/a.py#L1-L2', none='fastbit/a.py#LNone', bare='fastbit/a.py', after='fastbit/a.py#L3', gone='fastbit/b.py#L1', page='README.md')
    for name, to in links.items(): (site/f'{name}.html').write_text(f'<a href="https://x/blob/main/{to}" class="source-link">source</a>')
    problems = docs.wrong_source_links(site, tmp_path)
    assert [p.partition('.html')[0] for p in problems] == ['after', 'bare', 'gone', 'none', 'page']
    assert 'has no line 3' in problems[0] and 'no such file: fastbit/b.py' in problems[2] and 'LNone' in problems[3]


def test_parameters_are_in_the_groups_of_config(definitions):
    def record(**fields): return type('DataOptions', (), dict(__doc__='How images are split', option_fields=classmethod(lambda cls: fields)))
    def own(path:str, data:record(a=0, b=0, c=0, d=0)=None): pass
    @functools.wraps(own)
    def call(path, a=0, b=0, c=0, d=0): pass
    call.__signature__ = importlib.import_module('inspect').signature(lambda path, a=0, b=0, c=0, d=0: None)
    assert definitions.option_groups(call) == [('Data', 'How images are split', ['a', 'b', 'c', 'd'])]
    assert definitions.short_signature(call, 'call') == 'call(\n    path,\n    *,\n    # data: 4 options\n)'
    from fastbit.baseline import baseline
    names = [n for g in definitions.option_groups(baseline) for n in g.names]
    assert len(names) == len(set(names)) > 50 and {'valid_pct', 'epochs', 'out', 'arch', 'label_sep'} <= set(names)
    text = definitions.parameters(baseline)
    assert all(f'\n| {n} |' in text for n in names)


def test_what_is_a_test_and_what_draws(folding):
    "A cell that only asserts is folded, a lesson is not"
    picture = [{'data': {'image/png': ''}}]
    for source in ('test_eq(f(1), 2)', 'x = f(1)\nassert x', 'with expect_fail(ValueError): f()', 'for x in (1, 2): test_eq(f(x), x)'): assert folding.summary_of(source) == 'Test', source
    for source in ('f(1)', 'x = f(1)\ny = g(x)\nz = h(y)\nassert z', 'test_eq(f(1), 2)\nf(1)', '!ls'): assert not folding.summary_of(source), source
    assert not folding.summary_of('test_eq(f(1), 2)', [{'text': 'seen'}])   # it shows something
    assert folding.summary_of('fig, ax = plt.subplots()\nax.plot(x)\nax.set(xlabel="x")\nax.legend()', picture) == 'Code'
    assert not folding.summary_of('plot_losses(learn)', picture)   # one call of ours: how one uses it
    assert folding.summary_of('import a\nfrom b import c') == 'Imports'


def cell(source, kind='markdown', **more): return mk_cell(source, cell_type=kind, **more)


def test_public_definitions_come_first_and_internals_are_folded(folding):
    cells = [cell('## Helpers'), cell('How'), cell('### f', defines='f'), cell('f(1)', 'code'), cell('## Calls'), cell('### g', defines='g'), cell('### h', defines='h'), cell('g()', 'code')]
    shown = [c.source for c in folding.order_cells(cells, {'g'}.__contains__)]
    assert shown[:3] == ['## Calls', '### g', 'g()'] and shown[3].startswith('<details class="internals">') and '<code>f</code>, <code>h</code>' in shown[3]
    assert shown[4:] == ['## Helpers {.unlisted}', 'How', '### f {.unlisted}', 'f(1)', '### h {.unlisted}', ':::\n\n</details>']


def test_a_page_of_internals_alone_is_not_folded(folding):
    cells = [cell('## Helpers'), cell('### f', defines='f')]
    assert folding.order_cells(cells, set().__contains__) == cells


def test_every_public_name_has_a_line_and_a_group(definitions, docs):
    names = definitions.exported()
    assert len(names) > 200 and not [o.name for o in names.values() if not o.line]
    groups = docs.api_pages.index_groups()
    listed = [o.name for first, rest in groups.values() for o in (*first, *rest)]
    assert len(listed) == len(set(listed)) and set(names) <= set(listed) and all(len(first) > 2 for first, _ in groups.values())
    assert not [n for *_, leading in docs.api_pages.GROUPS.values() for n in leading if n not in names]


def test_every_attribute_of_a_result_and_a_learner_has_a_line(docs):
    from fastbit.baseline import BaselineResult
    from fastbit.training import TransferLearner
    for cls in (BaselineResult, TransferLearner):
        found = docs.api_pages.attributes_of(cls)
        assert len(found) > 10 and not [n for n, (_, line) in found.items() if not line], cls


def test_methods_in_the_order_of_use_are_there(docs):
    from fastbit.export import Predictor
    from fastbit.training import TransferLearner
    for cls, order in ((TransferLearner, docs.api_pages.LEARNER_ORDER), (Predictor, docs.api_pages.PREDICTOR_ORDER)):
        assert not [n for names in order.values() for n in names if n not in docs.api_pages.documented(cls)]


def test_examples_of_commands_parse(docs):
    parser = make_parser()
    assert set(docs.api_pages.EXAMPLES) <= set(parser.commands)
    for name, lines in docs.api_pages.EXAMPLES.items():
        for line in lines:
            words = shlex.split(line.partition(' > ')[0], comments=True)
            assert words[:2] == ['fastbit', name] and parser.parse_args(words[1:]).command == name


def test_every_module_s_page_has_a_title_in_the_field_s_terms(docs):
    with open(ROOT/'tools'/'pages.csv', newline='') as f: rows = list(csv.DictReader(f))
    have = {p.relative_to(ROOT/'nbs').with_name(docs.page_name(p)).with_suffix('').as_posix() for p in docs.notebooks(ROOT/'nbs')}
    made = {p.removesuffix('.md') for p in docs.api_pages.PAGES}
    keys = [r['page'] for r in rows]
    assert len(keys) == len(set(keys)) and not set(keys) - have - made, 'tools/pages.csv has pages that are not there'
    modules = {o for o in have if (ROOT/'fastbit'/f'{o}.py').exists()}
    assert len(modules) > 150 and not modules - set(keys), f'tools/pages.csv has no title for {sorted(modules - set(keys))}'
    assert not [r for r in rows if len(r['title']) > 60 or any(c in r['title'] for c in '"`')]
    words = [w for r in rows for w in set(r['words'].split(';')) if w]
    assert len(words) > 300 and not [w for w in words if w != w.strip()]


@pytest.fixture(scope='module')
def looks(docs): return sys.modules['looks']


def test_plots_and_photographs(looks):
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image
    def drawn(show, transparent=False):
        fig, file = Figure(figsize=(6, 3)), io.BytesIO()
        show(fig)
        fig.savefig(file, format='png', transparent=transparent)
        return Image.open(file)
    def noise(fig):
        for k in range(4): fig.add_subplot(1, 4, k+1).imshow(np.random.default_rng(k).random((40, 40, 3)))
    line = lambda fig: fig.add_subplot().plot([3, 1, 2])
    assert looks.is_plot(drawn(line)) and looks.is_plot(drawn(line, True))
    assert looks.is_plot(drawn(lambda fig: fig.add_subplot().imshow(np.eye(9), cmap='Blues')))
    assert not looks.is_plot(drawn(noise)) and not looks.is_plot(Image.new('RGB', (90, 90), 'white'))


def test_a_picture_counts_as_a_plot_with_any_mode(looks):
    "Channels are looked at apart; what is transparent is white"
    import numpy as np
    from PIL import Image
    px = np.full((60, 90, 4), 255, np.uint8)
    px[20:40, 10] = px[39, 10:80] = (30, 30, 30, 255)
    img = Image.fromarray(px)
    assert looks.is_plot(img) and all(looks.is_plot(img.convert(mode)) for mode in ('RGB', 'L', 'P', 'LA'))
    px[..., 3] = np.where((px[..., 0] == 255), 0, 255)
    px[..., :3][px[..., 3] == 0] = 7   # dark, and not seen
    assert looks.is_plot(Image.fromarray(px)) and looks.on_white(Image.fromarray(px)).getpixel((0, 0)) == (255, 255, 255)


def test_one_row_of_headings(looks):
    "A second one had the name of the index alone, and a line of nothing below each heading"
    import pandas as pd
    df = pd.DataFrame(dict(a=[1], b=[2]), index=pd.Index(['x'], name='recipe'))
    head = looks.one_heading(df.to_html()).partition('</thead>')[0]
    assert head.count('<tr') == 1 and '<th class="index-name">recipe</th>' in head and head.index('recipe') < head.index('<th>a</th>')
    two = pd.concat({'s': df}, names=['set'])
    assert looks.one_heading(two.to_html()).partition('</thead>')[0].count('<tr') == 1
    for plain in (df.rename_axis(None), df.rename_axis(columns='what'), pd.concat({'s': df}, axis=1)): assert looks.one_heading(plain.to_html()) == plain.to_html()



def test_options_do_not_break_and_notes_have_a_class(looks):
    marked = looks.mark_options('<p><code>fastbit x --no-cache</code> and --no-cache, <!-- a --b --></p><pre><code class="sh"><span class="ex">y</span> --a-b=1 a--b</code></pre>')
    assert marked == ('<p><code>fastbit x <span class="option">--no-cache</span></code> and --no-cache, <!-- a --b --></p>'
                      '<pre><code class="sh"><span class="ex">y</span> <span class="option">--a-b</span>=1 a--b</code></pre>')
    table = '<table class="table"> <thead> <tr> <th>in <code>timm</code></th> <th>in fastbit</th> <th>{}</th> </tr> </thead>'
    noted = lambda heading: 'class="table noted" style="--names: 2"' in looks.mark_notes(table.format(heading))
    assert noted('') and noted('note') and not noted('seconds')
    assert 'LearningRate<wbr>Scheduler' in looks.mark_cells('<tr><td><code>LearningRateScheduler</code></td></tr>').replace('Learning<wbr>Rate', 'LearningRate')


def test_long_cells_and_long_lines(looks):
    cells = '<tr><td>0.5 (0.4 to 0.6)</td><td style="x">the end of the schedule</td><td>a sentence of more than two dozen letters, <code>f(a=1, b=2)</code></td></tr>'
    marked = looks.mark_cells(cells)
    assert '<td>0.5' in marked and '<td class="words" style="x">the end' in marked   # four words and more
    assert marked.count('class="long"') == 1 and 'class="long">a sentence' in marked and 'f(<wbr>a=<wbr>1, b=<wbr>2)' in marked
    words = 'unsure      ' + 'a word and '*10
    out = lambda text: looks.mark_lines(f'<div class="cell-output cell-output-stdout">\n<pre><code>{text}</code></pre>')
    assert f'<code>short\n<span class="long-line" style="--indent: 12ch">{words}\n</span>end</code>' in out(f'short\n{words}\nend')
    table = '\n'.join(['name' + '    12345678'*9]*3)
    assert 'long-line' not in out(table)   # a table of numbers does not wrap
