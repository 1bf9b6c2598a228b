"The extras of settings.ini (`NAME_requirements = ...`) into pyproject.toml: `nbdev-migrate-config` (nbdev 3.3) carries only `dev_requirements` over"
import configparser, re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def extras() -> dict:
    "Name of an extra -> its requirements; developers have all of them"
    ini = configparser.ConfigParser()
    ini.read(ROOT/'settings.ini')
    found = {k.removesuffix('_requirements'): v.split() for k, v in ini['DEFAULT'].items() if k.endswith('_requirements')}
    found['dev'] += [r for name, rs in found.items() if name != 'dev' for r in rs]
    return found


def main():
    "Replace the one line that nbdev wrote"
    path = ROOT/'pyproject.toml'
    text = path.read_text()
    lines = ''.join(f'{name} = {rs!r}\n' for name, rs in extras().items())
    new, n = re.subn(r'(\[project\.optional-dependencies\]\n)(?:\w+ = .*\n)*', lambda m: m[1] + lines, text)
    if n != 1: raise SystemExit('pyproject.toml has no [project.optional-dependencies]: did nbdev-migrate-config change?')
    path.write_text(new)


if __name__ == '__main__': main()
