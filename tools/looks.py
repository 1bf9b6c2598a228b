"""What the look of a built page depends on and a style sheet cannot know: which pictures are plots, which cells and lines are long. And the page for wrong addresses

`finish(out)` goes through the HTML of the site once. A plot becomes dark in the dark (`styles.css`), a photograph keeps its colors; wide pictures get the width below which their text is illegible;
cells of text get room where short ones do not wrap; long lines that a program printed wrap under their text, not under its label; options do not break at their hyphens;
and notes in a last column without a heading go below the others on a phone.
"""
import base64, html, io, re
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

FLAT, LIGHT = .05, .72   # of a plot's pixels: at most this share outside its twelve commonest colors, and at least this share almost white
LEGIBLE = .305           # of a plot's pixels: CSS pixels that show its text at 9 pixels or more; what is less wide than a phone stays as it is
LONG_CELL, LONG_LINE = 24, 86   # characters; that many fit on a desktop


# Pictures

def on_white(img: Image.Image) -> Image.Image:
    "A picture without transparency"
    if not img.has_transparency_data: return img.convert('RGB')
    img = img.convert('RGBA')
    if img.getextrema()[3] == (255, 255): return img.convert('RGB')
    return Image.alpha_composite(Image.new('RGBA', img.size, 'white'), img).convert('RGB')


def is_plot(img: Image.Image) -> bool:
    "Is a picture drawn on white in a few flat colors, its margins apart? Photographs have many, and a row of them leaves little white"
    red, green, blue = (np.asarray(channel) for channel in on_white(img).split())   # apart: ten times as fast as over the last axis
    darkest = np.minimum(np.minimum(red, green), blue)
    inked = darkest < 250
    if not inked.any(): return False
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    inner = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    if (darkest[inner] >= 235).mean() <= LIGHT: return False
    color = (red[inner] >> 5).astype(np.int16)*64 + (green[inner] >> 5)*8 + (blue[inner] >> 5)
    counts = np.sort(np.bincount(color.ravel(), minlength=512))
    return bool(counts[:-12].sum() < FLAT*color.size)


@cache
def picture_of(png: bytes) -> tuple:
    "Width of a picture, and whether it is a plot: pages and their cards ask for it"
    img = Image.open(io.BytesIO(png))
    return img.width, is_plot(img)


def picture_attributes(png: bytes) -> str:
    "Class and style of a picture among the outputs of a cell"
    width, plot = picture_of(png)
    kind = 'img-fluid plot' if plot else 'img-fluid'
    least = round(LEGIBLE*width)
    return f'class="{kind}" style="--least: {least}px"' if least > 330 else f'class="{kind}"'


def mark_pictures(text: str, folder: Path) -> str:
    "Pictures of cells, inside the page or in files next to it, with their attributes"
    def marked(m):
        png = base64.b64decode(m[2]) if m[2] else (folder/m[1]).read_bytes()
        return f'<img src="{m[1]}" {picture_attributes(png)}'
    return re.sub(r'<img src="(data:image/png;base64,([^"]+)|[^":]+\.png)" class="img-fluid"', marked, text)


# Tables and lines

def plain(text: str) -> str:
    "The text of HTML"
    return html.unescape(re.sub(r'<[^>]+>', '', text))


def mark_cells(text: str) -> str:
    "Cells of text, which need room, cells of a few words, which wrap, and not those of numbers and names; code breaks after its punctuation"
    def marked(m):
        inside = plain(m[2]).strip()
        words = re.findall('[a-zA-Z]{2,}', inside)
        text = re.sub(r'<code>([^<]+)</code>', breakable, m[2])
        if len(inside) > LONG_CELL: return f'<td class="long"{m[1]}>{text}</td>'
        return f'<td class="words"{m[1]}>{text}</td>' if len(words) > 3 else f'<td{m[1]}>{text}</td>'
    return re.sub(r'<td((?: style="[^"]*")?)>(.*?)</td>', marked, text, flags=re.S)


def breakable(m) -> str:
    "Code that breaks after a bracket, a comma, a point, an underscore or an equals sign, and within `CamelCase`, before it breaks anywhere"
    return '<code>' + re.sub(r'([(,._=/](?=[^ ;<])|[a-z](?=[A-Z][a-z]))', r'\1<wbr>', m[1]) + '</code>'


def mark_options(text: str) -> str:
    "Options in code, which do not break at their hyphens: `--no-cache`"
    option = re.compile(r'(?<![\w<!-])--[a-z][\w-]*')
    whole = lambda m: re.sub(r'[^<>]+(?=<)', lambda t: option.sub(r'<span class="option">\g<0></span>', t[0]), m[0])
    return re.sub(r'<code\b[^>]*>.*?</code>', whole, text, flags=re.S)


def mark_notes(text: str) -> str:
    "Tables whose last column, the third or fourth, has no heading or `note`: on a phone, it stands below the others"
    heading = r'(?:\s*<th[^>]*>(?:(?!</th>).)+</th>|\s*<th[^>]*></th>(?=\s*<th))'
    def marked(m):
        names = m[2].count('<th') - m[2].count('<thead') - 1
        return f'<table class="{m[1]} noted" style="--names: {names}"{m[2]}'
    return re.sub(rf'<table class="([^"]*)"(>\s*<thead>\s*<tr[^>]*>{heading}{{2,3}}\s*<th[^>]*>(?:note)?</th>\s*</tr>)', marked, text)


def one_heading(text: str) -> str:
    "pandas puts the names of the index into a second row of headings, where nothing else stands: into the first, above their values"
    def merged(m):
        row = re.compile(r'<tr[^>]*>.*?</tr>', re.S)
        if len(rows := row.findall(m[0])) != 2: return m[0]
        first, second = (re.findall(r'<th[^>]*>(.*?)</th>', r, re.S) for r in rows)
        n = sum(map(bool, second))
        if len(first) != len(second) or any(first[:n]) or not all(second[:n]) or any(second[n:]): return m[0]
        heads = re.sub('<th></th>', lambda _, names=iter(second[:n]): f'<th class="index-name">{next(names)}</th>', rows[0], count=n)
        return m[0].replace(rows[0], heads).replace(rows[1], '')
    return re.sub(r'<thead>.*?</thead>', merged, text, flags=re.S)


def is_table(lines: list) -> bool:
    "Are lines columns of a table that was printed, which must not wrap?"
    return sum(len(re.findall(r'\S {2,}(?=\S)', line)) >= 3 for line in lines) > 1


def hanging(line: str) -> str:
    "A long line whose continuation begins under its text: `unsure      90% precision on …` under `90%`"
    label = re.match(r' *\S+(?: \S+)? {2,}(?=\S)|[a-z ]{11} (?=\S)| {6,}(?=\S)', plain(line))
    indent = len(label[0]) if label else 0
    return f'<span class="long-line" style="--indent: {indent}ch">{line}\n</span>'


def mark_lines(text: str) -> str:
    "What a program printed: long lines wrap where they are not those of a table"
    def marked(m):
        lines = m[2].split('\n')
        long = [len(plain(line)) > LONG_LINE for line in lines]
        if not any(long) or is_table([line for line, is_long in zip(lines, long) if is_long]): return m[0]
        return m[1] + ''.join(hanging(line) if is_long else f'{line}\n' for line, is_long in zip(lines, long)).removesuffix('\n') + m[3]
    return re.sub(r'(<div class="cell-output[^"]*">\s*<pre><code>)([^<]*)(</code></pre>)', marked, text)


# The page for wrong addresses

NOT_FOUND = """<h1 class="title">This page does not exist</h1>
<p>It may have moved: search for it (key <code>/</code>), or begin at one of these pages.</p>
<ul>
<li><a href="index.html">Home</a></li>
<li><a href="quick_start.html">Quick start</a></li>
<li><a href="tutorials/index.html">Tutorials</a></li>
<li><a href="how_to/index.html">How-to</a></li>
<li><a href="reference/python_api.html">Python API</a></li>
</ul>"""


def write_not_found(out: Path, root: str):
    "`404.html`, which a host shows at any wrong address, so its links begin at `root`, the path of the site: '/fastbit/'"
    page = (out/'glossary.html').read_text()
    page = re.sub(r'<title>.*?</title>', '<title>Page not found – fastbit</title>', page, count=1, flags=re.S)
    page = re.sub(r'(<main\b[^>]*>).*?(</main>)', lambda m: m[1] + NOT_FOUND + m[2], page, count=1, flags=re.S)
    page = re.sub(r'<ol class="breadcrumb">.*?</ol>', '', page, count=1, flags=re.S).replace(' active"', '"')
    (out/'404.html').write_text(page.replace('<head>', f'<head><base href="{root}"><meta name="robots" content="noindex">', 1))


def finish(out: Path):
    "Mark pictures, cells, lines, options and notes of all pages"
    for page in out.rglob('*.html'):
        text = page.read_text()
        better = mark_options(mark_notes(mark_lines(mark_cells(one_heading(mark_pictures(text, page.parent))))))
        if better != text: page.write_text(better)
