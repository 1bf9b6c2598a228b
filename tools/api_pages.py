"""Pages that are made from the package itself: the index of the API, the learner, the result, the predictor, and the command line

Nothing here is a list to keep: names come from the doors, methods from the classes, options from the parser. What is written down is the order of groups, and
which names come first; a name that is not mentioned appears under its room.
"""
import argparse, ast, inspect, re
from collections import defaultdict
from functools import cache
from types import FunctionType, UnionType

from fastcore.basics import listify
from nbdev.showdoc import showdoc_nm

from definitions import cells, definition, docment_table, exported, folded, module_tree, option_records, page_title, plain_type
from folding import NEVER

COMMANDS = 'reference/command_line.md'
PAGES = ('reference/python_api.md', 'reference/learner.md', 'reference/result.md', 'reference/predictor.md', COMMANDS)


def front_matter(title: str, description: str) -> str: return f'---\ntitle: "{title}"\ndescription: "{description}"\n---\n'


# The index

GROUPS = dict(   # title -> what one does with it, and the names that come first
    load=('Load and check data', 'From a folder, a table or a stream to batches, and what is wrong with the files.',
          ('image_dataloaders', 'table_dataloaders', 'stream_dataloaders', 'check_data', 'image_table', 'split_table', 'check_images',
           'duplicate_groups', 'class_weights', 'named_table')),
    body=('Choose a body', 'A pretrained model, its weights and its preprocessing.',
          ('list_bodies', 'build_body', 'load_weights', 'body_stages', 'TransferModel')),
    train=('Train', 'The learner is fastai\'s, with true freezing; [its methods](learner.md) are on one page.',
           ('transfer_learner', 'TransferLearner', 'Checkpoint', 'KeepBest', 'History', 'logistic_head', 'HyperRule')),
    one=('A baseline in one line', 'Check, train, evaluate, report; [the result](result.md) has everything that was measured.',
         ('baseline', 'BaselineResult', 'Plan')),
    evaluate=('Evaluate and calibrate', 'Metrics with confidence intervals, calibrated probabilities, and when not to answer.',
              ('evaluate_probs', 'Evaluation', 'accuracy_interval', 'fit_temperature', 'apply_temperature', 'threshold_for_precision',
               'prediction_sets', 'tta_probs')),
    report=('Report', 'Pages, plots and class activation maps.',
            ('make_report', 'activation_maps', 'class_activation', 'plot_confusion', 'plot_reliability', 'plot_lr_find')),
    export=('Export and predict', 'A trained model as a folder without code, or as ONNX; [the predictor](predictor.md) reads it.',
            ('load_predictor', 'Predictor', 'export_onnx', 'save_artifact', 'load_artifact', 'save_embeddings')),
    compare=('Compare and study', 'Several runs, bodies or amounts of data side by side.',
             ('leaderboard', 'compare_runs', 'few_shot_curve', 'probe', 'head_curve', 'rank_to_label', 'frozen_features', 'nearest_rows')),
    tasks=('Several labels and numbers', 'Images with several labels, ordered classes, and numbers to predict.',
           ('evaluate_labels', 'choose_thresholds', 'evaluate_numbers', 'read_ordered_set')),
    options=('Options and cache', 'The records of options that `baseline`, `image_dataloaders` and the command share, and what is stored on disk.',
             ('list_stores', 'clear_stores', 'cache_root')))

GROUP_OF_ROOM = dict(data='load', bodies='body', training='train', baseline='one', metrics='evaluate', report='report', export='export',
                     studies='compare', config='options', core='options', hyperrule='train')
GROUP_OF_MODULE = {
    'studies.doctor': 'load', 'studies.detect': 'load', 'training.tta': 'evaluate', 'training.curve': 'compare', 'training.similar': 'compare',
    'data.features': 'compare', 'data.neighbors': 'compare', 'data.ordered': 'tasks', 'metrics.several': 'tasks', 'metrics.multilabel': 'tasks',
    'metrics.asymmetric': 'tasks', 'metrics.stratify': 'tasks', 'metrics.numbers': 'tasks', 'metrics.number_loss': 'tasks',
    'metrics.label_calibration': 'tasks', 'data.views': 'evaluate'}


def group_of(name) -> str:
    "The group of an exported name: that of its module, else of its room"
    return GROUP_OF_MODULE.get(name.module, GROUP_OF_ROOM[name.module.partition('.')[0]])


def rank(name: str) -> int:
    "The place of a definition among those that its group begins with; a large number for others"
    return next((leading.index(name) for *_, leading in GROUPS.values() if name in leading), NEVER)


def index_table(names) -> str:
    "A row per name, which leads to its documentation"
    rows = [f'| [`{o.name}`](../{o.page}.html#{o.anchor}) | {o.line} |' for o in names]
    return '\n'.join(['::: {.index}', '', '| | |', '|---|---|', *(r.replace('\\|', '|') for r in rows), '', ':::'])


def index_groups() -> dict:
    "Group -> (names that come first, the others)"
    names = {**exported(), **{o.name: o for o in option_records()}}
    members = defaultdict(list)
    for o in names.values(): members[group_of(o)].append(o)
    first = {k: [names[n] for n in leading if n in names] for k, (_, _, leading) in GROUPS.items()}
    led = {o.name for found in first.values() for o in found}
    rest = {k: sorted((o for o in members[k] if o.name not in led), key=lambda o: (o.kind != 'function', o.name.lower())) for k in GROUPS}
    first['options'] += [o for o in rest['options'] if o.module == 'config']
    rest['options'] = [o for o in rest['options'] if o.module != 'config']
    return {k: (first[k], rest[k]) for k in GROUPS}


def index_page() -> str:
    n = len(exported())
    parts = [front_matter('Python API', 'What people call, by what one wants to do'),
             f'All {n} public names; `from fastbit.all import *` imports them, with fastai\'s vision library. '
             'Options of every call are [records](../config.html), and the [command line](command_line.md) has the same ones.']
    for key, (first, rest) in index_groups().items():
        title, line, _ = GROUPS[key]
        parts += [f'## {title}', line, index_table(first)]
        if rest: parts.append(folded(f'<b>Building blocks</b> <i>{len(rest)} names</i>', index_table(rest), 'more'))
    return '\n\n'.join(parts)


# A class with all its methods

@cache
def methods_of(cls) -> dict:
    "Name -> (attribute, module, class) of everything documented that a class has from us, patched in or inherited"
    found = {}
    for c in reversed(cls.__mro__):
        if not c.__module__.startswith('fastbit.'): continue
        for name, f in vars(c).items():
            plain = f.fget if isinstance(f, property) else getattr(f, '__func__', f)
            if name.startswith('_') or not isinstance(plain, FunctionType): continue
            found[name] = (f, plain.__module__.removeprefix('fastbit.'), c)
    return found


def documented(cls) -> list: return [n for n, (f, *_) in methods_of(cls).items() if f.__doc__ and not isinstance(f, property)]


def method_text(cls, name: str) -> str:
    "A method, and the page that explains it"
    f, module, owner = methods_of(cls)[name]
    full = f'{owner.__name__}.{name}'
    anchor = f'#{full.lower()}' if full.lower() in shown_anchors(module) else ''
    more = f'Explained in [{page_title(module)}](../{module.replace(".", "/")}.html{anchor}).'
    return definition(vars(owner)[name], full, module, title=name, more=more)


@cache
def shown_anchors(module: str) -> set:
    "Anchors of methods that the page of a module has: those patched in, and those of its classes with a docstring"
    tree, found = module_tree(module), set()
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): found |= {o.lower() for o in listify(showdoc_nm(n))}
        own = [m for m in getattr(n, 'body', ()) if isinstance(n, ast.ClassDef) and isinstance(m, ast.FunctionDef)]
        found |= {f'{n.name}.{m.name}'.lower() for m in own if ast.get_docstring(m) and not m.name.startswith('_')}
    return found


# Attributes

@cache
def comments_of(cls) -> dict:
    "Attribute -> the comment behind it, for fields, class attributes and properties of one line"
    try: lines = inspect.getsource(cls).splitlines()
    except (OSError, TypeError): return {}
    found = (re.match(r'\s+(?:def )?(\w+)\s*(?:\(self\)|[:=])[^#]*#\s*(.+)$', line) for line in lines)
    return {m[1]: m[2].strip() for m in found if m}


def handed_on(f: property) -> tuple:
    "(record, field) of a property that returns a field of a record of the object, else None"
    found = re.search(r'return self\.(\w+)\.(\w+)\s*(?:#.*)?$', inspect.getsource(f.fget).strip())
    return found and found.groups()


def field_type(cls, name: str):
    "The annotated type of a field"
    return next((c.__annotations__[name] for c in cls.__mro__ if name in c.__dict__.get('__annotations__', {})), None)


def attribute_line(cls, name: str, f) -> str:
    "What an attribute is: the docstring of the property, the comment behind it, or that of the field which it hands on"
    if isinstance(f, property) and f.__doc__: return inspect.cleandoc(f.__doc__).partition('\n')[0]
    for c in cls.__mro__:
        if c.__module__.startswith('fastbit.') and name in comments_of(c): return comments_of(c)[name]
    record, field = (handed_on(f) or (None, None)) if isinstance(f, property) else (None, None)
    kind = record and field_type(cls, record)
    if inspect.isclass(kind): return attribute_line(kind, field, vars(kind).get(field))
    return inspect.cleandoc(kind.__doc__ or '').partition('\n')[0] if inspect.isclass(kind) else own_line(f)


def own_line(f) -> str:
    "The first line of the docstring of what a property returns, or a field is"
    kind = f.fget.__annotations__.get('return') if isinstance(f, property) else f
    kind = next((k for k in getattr(kind, '__args__', ()) if k is not type(None)), kind) if isinstance(kind, UnionType) else kind
    if not inspect.isclass(kind) or not kind.__module__.startswith('fastbit'): return ''
    return inspect.cleandoc(kind.__doc__ or '').partition('\n')[0]


def attributes_of(cls) -> dict:
    "Name -> (type, line) of fields, class attributes and properties, in the order of the source"
    found = {}
    for c in reversed(cls.__mro__):
        if not c.__module__.startswith('fastbit.'): continue
        for name, kind in c.__dict__.get('__annotations__', {}).items(): found[name] = (kind, attribute_line(cls, name, kind))
        for name, f in vars(c).items():
            if name.startswith('_') or name in found: continue
            if isinstance(f, property): found[name] = (f.fget.__annotations__.get('return'), attribute_line(cls, name, f))
            elif name in comments_of(c) and not isinstance(f, FunctionType): found[name] = (type(f), comments_of(c)[name])
    return {k: v for k, v in found.items() if not k.startswith('_')}


def attribute_table(cls, without=()) -> str:
    rows = [f'| {name} | {plain_type(kind).replace("|", chr(92) + "|")} | {line.replace("|", chr(92) + "|")} |'
            for name, (kind, line) in attributes_of(cls).items() if name not in without]
    return docment_table('\n'.join(['|   | Type | Details |', '|---|---|---|', *rows]))


def overview(cls, names) -> str:
    "A line per method, which leads to it below"
    rows = [f'| [`{n}`](#{n.lower()}) | {inspect.cleandoc(getattr(cls, n).__doc__).partition(chr(10))[0]} |' for n in names]
    return '\n'.join(['::: {.index}', '', '| | |', '|---|---|', *rows, '', ':::'])


def class_page(cls, order: dict, make: str = '') -> str:
    "The methods of a class in the order of use, after the function that makes one; those that `order` does not name come last, folded"
    known = documented(cls)
    order = {title: [n for n in names if n in known] for title, names in order.items()}
    ordered = [n for names in order.values() for n in names]
    rest = sorted(set(known) - set(ordered))
    parts = [overview(cls, ordered), make]
    for title, names in order.items(): parts += [f'## {title}', *(method_text(cls, n) for n in names)]
    if rest:
        texts = '\n\n'.join(re.sub(r'^(### \w+)$', r'\1 {.unlisted}', method_text(cls, n), flags=re.M) for n in rest)
        parts.append(folded(f'<b>Further methods</b> <span>{", ".join(f"<code>{n}</code>" for n in rest)}</span>',
                            f'::: {{.internals-body}}\n\n{texts}\n\n:::', 'internals'))
    return '\n\n'.join(parts)


def python(*lines) -> str: return '\n'.join(['```python', 'from fastbit.all import *', *lines, '```'])


def maker(f, module: str) -> str:
    "The function that makes an object of a class"
    name = f.__name__
    more = f'Explained in [{page_title(module)}](../{module.replace(".", "/")}.html#{name}).'
    return f'## Make one\n\n{definition(f, name, module, more=more)}'


LEARNER_ORDER = {
    'Freeze and look': ('freeze', 'unfreeze', 'freeze_to', 'lr_table'),
    'Find a learning rate': ('lr_find',),
    'Train': ('fit_head', 'fit_upper', 'fit_one_cycle', 'fine_tune', 'fit', 'hyperrule', 'fit_hyperrule', 'fit_rule'),
    'Measure': ('evaluate', 'tta', 'calibrate', 'choose_thresholds', 'prediction_interval'),
    'Report and save': ('report', 'export')}

PREDICTOR_ORDER = {
    'Predict': ('predict', 'logits', 'head_probs'),
    'Measure': ('evaluate', 'evaluate_selective', 'measure_selective'),
    'Features and similar images': ('embed', 'similar', 'training_index', 'index_images')}

RESULT_ORDER = {'Report and save': ('report', 'save', 'as_dict')}


def learner_page() -> str:
    from fastbit.training import TransferLearner, transfer_learner
    return '\n\n'.join([
        front_matter('The learner', 'Every method of `TransferLearner`, in the order of use'),
        'A `TransferLearner` is a fastai `Learner`: everything that fastai\'s has works, `get_preds`, `validate`, `show_results` and '
        'callbacks included. These are the methods that fastbit adds or changes, whichever module they are in.',
        python('dls = image_dataloaders(path)', 'learn = transfer_learner(dls)', 'learn.fit_head()', 'learn.unfreeze()',
               'learn.fit_one_cycle(4)', 'learn.evaluate()'),
        class_page(TransferLearner, LEARNER_ORDER, maker(transfer_learner, 'training.learner')),
        '## Attributes', attribute_table(TransferLearner, ('in_fit', 'first_epoch', 'first_batch', 'micro_batch', 'step_share', 'compiles',
                                                          'keeps_outputs', 'trained_before', 'loss_func', 'is_classifier_new'))])


def result_page() -> str:
    from fastbit.baseline import BaselineResult
    subclasses = sorted(all_subclasses(BaselineResult), key=lambda c: c.__name__)
    parts = [front_matter('The result of a baseline', 'Attributes and methods of what `baseline` returns'),
             '`print(result)` shows a summary. Numbers are from the held-out images: the test set if the data have one, else the '
             'validation set.',
             python('result = baseline(path)', 'print(result)', 'result.evaluation.accuracy', 'result.predictions'),
             '## Attributes', attribute_table(BaselineResult), class_page(BaselineResult, RESULT_ORDER)]
    own = [(c, attribute_rows_of(c)) for c in subclasses]
    if any(rows for _, rows in own): parts.append('## Several labels and numbers')
    for c, rows in own:
        if rows: parts += [f'`{c.__name__}`: {inspect.cleandoc(c.__doc__).partition(chr(10))[0]}. It adds:', rows]
    return '\n\n'.join(parts)


def all_subclasses(cls) -> set: return {s for c in cls.__subclasses__() for s in {c, *all_subclasses(c)}}


def attribute_rows_of(cls) -> str:
    "What a class has and its base has not"
    base = set(attributes_of(cls.__mro__[1]))
    return '' if set(attributes_of(cls)) <= base else attribute_table(cls, base)


def predictor_page() -> str:
    from fastbit.export import Predictor, load_predictor
    return '\n\n'.join([
        front_matter('The predictor', 'A saved model that classifies images: `load_predictor` and the methods of `Predictor`'),
        python('predictor = load_predictor(results)', 'predictor.predict(images)'),
        class_page(Predictor, PREDICTOR_ORDER, maker(load_predictor, 'export.predict')),
        '## Attributes', attribute_table(Predictor)])


# The command line

EXAMPLES = dict(   # command -> lines, each parsed by the tests
    baseline=('fastbit baseline photos              # a folder per class',
              'fastbit baseline labels.csv          # or a table of paths and labels',
              'fastbit baseline photos --dry-run    # the plan, without training',
              'fastbit baseline photos --budget 10m --open'),
    leaderboard=('fastbit leaderboard photos --top 3',
                 'fastbit leaderboard photos --arch resnet50 --arch convnext_tiny'),
    check=('fastbit check photos --open', 'fastbit check photos --no-labels     # files and duplicates alone'),
    rule=('fastbit rule photos', 'fastbit rule photos --plot rates.png'),
    predict=('fastbit predict results new-photos', 'fastbit predict results new-photos --csv --min-precision 0.95 > answers.csv'),
    evaluate=('fastbit evaluate results test-photos', 'fastbit evaluate results test.csv --tta'),
    embed=('fastbit embed results photos -o features.parquet',),
    similar=('fastbit similar results photo.jpg --open', 'fastbit similar results photo.jpg --in archive -n 10'),
    export=('fastbit export results model.onnx',),
    bodies=('fastbit bodies', 'fastbit bodies convnext tiny --max-params 30 --license commercial'),
    cache=('fastbit cache', 'fastbit cache --clear'),
    serve=('fastbit serve results',),
    **{'label-next': ('fastbit label-next results unlabeled -n 50',)})


def option_name(a) -> str:
    "An option as one types it, with all its shown spellings"
    value = '' if a.nargs == 0 else f' {a.metavar or "|".join(map(str, a.choices or (a.dest.upper(),)))}'
    return ', '.join(f'`{o}{value}`' for o in a.option_strings) if a.option_strings else f'`{a.metavar or a.dest}`'


def option_table(actions, parser) -> str:
    "A row per option: how one types it, the default, and what it does"
    rows = []
    for a in actions:
        text = (a.help or '') % {**vars(a), 'prog': parser.prog}
        line, found, default = text.rpartition(' (default: ')
        if not found or not default.endswith(')'): line, default = text, ')'
        rows.append((option_name(a), default[:-1], line.replace('<', '&lt;')))
    used = [0, 1, 2] if any(r[1] for r in rows) else [0, 2]
    return docment_table('\n'.join(cells(*(r[i] for i in used)) for r in (('Option', 'Default', 'Details'), ['---']*3, *rows)), 'command')


def command_groups(parser) -> list:
    "(title, actions) of what `--help` shows of a command: arguments first, what every command has last"
    shown = lambda g: [a for a in g._group_actions if a.help is not argparse.SUPPRESS and a.dest != 'help']
    first, general, *groups = parser._action_groups
    return [(title, shown(g)) for title, g in (('Arguments', first), *((g.title, g) for g in groups), ('General', general)) if shown(g)]


def counted(n: int, what: str) -> str: return f'{n} {what}{"s"*(n != 1)}'


def field_table(text: str) -> str:
    "What follows the options in `--help`: a heading, and a line per field"
    heading, *lines = text.splitlines()
    rows = [cells(f'`{name.strip()}`', words) for name, _, words in (line.partition(': ') for line in lines)]
    table = docment_table('\n'.join([cells('Field', 'Details'), cells('---', '---'), *rows]), 'command')
    return folded(f'<b>{heading[:1].upper()}{heading[1:].rstrip(":")}</b>', table, 'options')


def usage(parser, name) -> str:
    "The words that a command needs"
    needed = [a for _, actions in command_groups(parser) for a in actions if not a.option_strings or a.required]
    words = [f'{a.option_strings[0]} {a.metavar}' if a.option_strings else f'[{a.metavar}]' if a.nargs in ('?', '*') else
             f'{a.metavar} …' if a.nargs == '+' else a.metavar for a in needed]
    return ' '.join(['fastbit', name, *words, '[options]'])


def command_text(name: str, parser) -> str:
    "A command: what it does, examples, and its options by group"
    shown = command_groups(parser)
    examples = '\n'.join(EXAMPLES.get(name, ()))
    description = parser.description or ''   # unlike help it is text, of which argparse formats nothing
    parts = [f'## fastbit {name} {{#{name}}}', description, f'```sh\n{examples}\n```' if examples else f'`{usage(parser, name)}`']
    for title, actions in shown:
        table = option_table(actions, parser)
        heading = title[:1].upper() + title[1:]
        if title == 'Arguments' or len(shown) <= 2: parts.append(table)
        else: parts.append(folded(f'<b>{heading}</b> <i>{counted(len(actions), "option")}</i>', table, 'options'))
    if parser.epilog: parts.append(field_table(parser.epilog))
    return '\n\n'.join(p for p in parts if p)


def command_page() -> str:
    from fastbit.cli.parser import make_parser
    parser = make_parser()
    helps = {a.dest: a.help for a in next(o for o in parser._actions if isinstance(o, argparse._SubParsersAction))._choices_actions}
    rows = [f'| [`fastbit {name}`](#{name}) | {helps.get(name, "")} |' for name in parser.commands]
    general = [a for _, actions in command_groups(parser) for a in actions if a.option_strings]
    index = '\n'.join(['::: {.index}', '', '| | |', '|---|---|', *rows, '', ':::'])
    return '\n\n'.join([
        front_matter('Command line', 'Every command and every option of `fastbit`'), index,
        '`fastbit COMMAND --help` shows the same. Options have the names that they have in [Python](python_api.md), with dashes.',
        *(command_text(name, p) for name, p in parser.commands.items()),
        '## Without a command', option_table(general, parser)])


MAKERS = dict(zip(PAGES, (index_page, learner_page, result_page, predictor_page, command_page)))

def page(path: str) -> str:
    "One of `PAGES`, in Markdown with nbdev's names to link"
    return MAKERS[path]()
