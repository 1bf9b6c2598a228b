"""The oldest versions that settings.ini allows, as constraints for pip

    python tools/oldest.py > oldest.txt && pip install -c oldest.txt .
"""
import configparser, re
from pathlib import Path


EXTRAS = ('onnx', 'distributed', 'streaming')   # that the tests of the oldest versions need


def oldest() -> list:
    "'name==version' of every requirement that users have or may have, with its lower bound"
    ini = configparser.ConfigParser()
    ini.read(Path(__file__).parents[1]/'settings.ini')
    words = ini['DEFAULT']['requirements'].split()
    for extra in EXTRAS: words += ini['DEFAULT'][f'{extra}_requirements'].split()
    found = [re.fullmatch(r'([\w.-]+)>=([\w.]+)', w) for w in words]
    bad = [w for w, m in zip(words, found) if not m]
    if bad: raise SystemExit(f'settings.ini: {bad[0]} has no lower bound')
    return [f'{m[1]}=={m[2]}' for m in found]


if __name__ == '__main__': print(*oldest(), sep='\n')
