"""The project's English, where anybody reads it: no phrase that has a better one is left in pages, docstrings, messages, help and reports

Each pattern stands with what to write instead. Comments and the names of tests are not looked at.
"""
import ast, json, re, sys
from pathlib import Path

import pytest

from fastbit.cli.parser import make_parser

ROOT = Path(__file__).parents[1]

INSTEAD = {   # pattern -> what to write
    r'(?<!an )\b(images?|steps?|rows?|pictures?|batches) a (second|class|batch|epoch)\b|\bone row an image\b': 'per: images per second, one row per image',
    r'\banew\b|\bafresh\b': 'again, new',
    r'\bbeside\b': 'besides, next to, with',
    r'\bof (its|their|your) own\b': 'its own …, separate',
    r'\bwhatever\b': 'any, regardless of',
    r'\bgo(es|ing)? on from\b|\bto go on\b': 'resume, continue',
    r'\btyped again\b': 'rerun',
    r'(?<!there )\b(is|are|be) no (number|artifact|image|file|folder|path|results?|table|class)\b': 'is not a …',
    r'\bnone of `': 'not one of',
    r'\bsureness\b|\bhow sure\b': 'confidence',
    r'\bsaid aloud\b|\bput out\b|\bways on\b|\bin the place of\b': 'reported, instead of, …',
    r'\bmirror images?\b': 'horizontal flips',
    r'\bloader processes\b': 'worker processes',
    r'\ba tenth after\b': 'LR decay ×0.1 after',
    r'\bwithout a network\b': 'offline',
    r'\bkept from before\b': 'cached',
    r'(?<![\d.])\d+(\.\d+)? %(?![\w(])': '97.5%, without a space',
    r'\b(normalis|optimis(?!tic|m\b)|initialis|standardis|summaris|recognis|organis|minimis|maximis|regularis)\w+': 'American spelling: -ize',
    r'\b(behaviour|colour|favour|licence|centre|labelled|labelling|modelling)\w*\b': 'American spelling',
    r'\bthe (last|first|later|lower) (stages|layers) know\b|\bmodel (knows|says|speaks)\b': 'models do not know, say or speak',
}
BETTER = [(re.compile(pattern, re.I), words) for pattern, words in INSTEAD.items()]


def docstrings(text:str) -> list:
    "Docstrings, docments and strings of a module or a cell, joined where they are adjacent"
    try: tree = ast.parse(re.sub(r'^[!%].*', 'pass', text, flags=re.M))
    except SyntaxError: return []
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and ' ' in n.value]
    return [*strings, *re.findall(r'#[ ]([A-Za-z`].*)$', '\n'.join(o for o in text.splitlines() if re.match(r'\s+\*{0,2}\w+[:=]', o)), re.M)]


def pages():
    "(where, text): the text of every page, and its code's docstrings and messages"
    for p in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if any(o[0] in '._' for o in p.relative_to(ROOT/'nbs').parts): continue
        for c in json.loads(p.read_text())['cells']:
            text = ''.join(c['source'])
            for o in ([text] if c['cell_type'] == 'markdown' else docstrings(text)): yield p.relative_to(ROOT).as_posix(), o


def others():
    "(where, text) of what is not a page: README, changelog, templates, help of each command"
    for p in (ROOT/'README.md', ROOT/'CHANGELOG.md', ROOT/'CONTRIBUTING.md', *sorted((ROOT/'fastbit').rglob('*.html'))): yield p.relative_to(ROOT).as_posix(), re.sub(r'\{[%{].*?[%}]\}', '', p.read_text())   # not the templates' own words
    parser = make_parser()
    for name, command in parser._subparsers._group_actions[0].choices.items(): yield f'fastbit {name} --help', command.format_help()


def phrases(texts) -> list:
    "(where, what was written, what to write)"
    return [(where, ' '.join(text[max(0, m.start()-25):m.end()+25].split()), words) for where, text in texts for better, words in BETTER for m in better.finditer(text)]


def test_the_patterns_find_what_they_are_for():
    bad = ('96 images a second', 'one row an image', 'drawn anew', 'a page of its own', 'the loss is no number', 'resume and go on from there', '97.5 % correct', 'how sure it is', 'normalisation', 'the colours')
    assert all(phrases([('', text)]) for text in bad)
    assert not phrases([('', 'Rerun the same command: 96 images per second, 97.5% correct, and besides, the loss is not a number.')])


@pytest.mark.parametrize('texts', [pages, others])
def test_no_phrase_that_has_a_better_one(texts):
    found = phrases(texts())
    assert not found, '\n'.join(f'{where}: …{text}… (write: {words})' for where, text, words in found[:40])


def test_messages_install_packages_that_exist():
    "fastbit itself is installed from its repository, so `pip install \"fastbit[onnx]\"` would find nothing"
    for file in (ROOT/'fastbit').rglob('*.py'): assert 'install "fastbit' not in file.read_text().replace('\\', ''), file
