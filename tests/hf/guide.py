"""Guides as programs: the code blocks of a Markdown page, run in order, as client/python/docs/index.md tells readers.

A page may begin with a comment of rules:

    <!-- test
    "meta-llama/Llama-3.1-8B" -> LLAMA
    num_train_epochs=3 -> max_steps=2
    given: train_dataset
    -->

"text -> other" replaces in every block; names in capitals stand for what the test gives (the folder of a tiny model).
"given" names exist before the first block. A rule that replaces nothing is an error. Blocks are ```python and ```sh;
the first line of one may say

    # needs a GPU                               not run without one; it compiles, and what it imports exists
    # raises bitpager.UnsupportedError: words   must raise that, with these words

and a ```text block right behind one is what it prints, where a line of "..." stands for any lines.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import subprocess

import torch

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_RULES = re.compile(r"\A<!-- test\n(.*?)\n-->\n", re.DOTALL)
_RAISES = re.compile(r"# raises ([\w.]+)(?:: (.*))?")
RUN, SHELL, OUTPUT = "python", "sh", "text"
KINDS = (RUN, SHELL, OUTPUT)


class Block:
    """A fenced block: kind ("python", "sh" ...), code, line of its first line, printed (None, or the text block behind
    it)."""

    def __init__(self, kind, code, line):
        self.kind = kind
        self.code = code
        self.line = line
        self.printed = None

    @property
    def first_line(self) -> str:
        return self.code.partition("\n")[0]

    @property
    def needs_gpu(self) -> bool:
        """Marked so that readers see it."""
        return self.first_line.startswith("# needs a GPU")

    @property
    def raises(self):
        """(name of the exception, words) or None."""
        match = _RAISES.match(self.first_line)
        return None if match is None else (match.group(1), match.group(2) or "")


class Page:
    """A guide: blocks in order, rules [(text, other)], given [names], text."""

    def __init__(self, path):
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.rules, self.given = self._header()
        self.blocks = []
        ended = -1
        for match in _FENCE.finditer(self.text):
            kind, code = match.groups()
            between = self.text[ended : match.start()].strip() if ended >= 0 else "nothing yet"
            if kind == OUTPUT and not between and self.blocks:
                self.blocks[-1].printed = code
            else:
                self.blocks.append(Block(kind, code, self.text.count("\n", 0, match.start()) + 2))
            ended = match.end()

    def _header(self):
        match = _RULES.match(self.text)
        rules, given = [], []
        for line in match.group(1).splitlines() if match else ():
            if line.startswith("given:"):
                given += [name.strip() for name in line[6:].split(",")]
            else:
                text, arrow, other = line.partition(" -> ")
                assert arrow, f"{self.path.name}: {line!r} is no rule"
                rules.append((text, other))
        return rules, given

    def substituted(self, code: str, names: dict) -> str:
        """`code` under the rules; `names`: what capitals stand for."""
        for text, other in self.rules:
            for name, value in names.items():
                other = re.sub(rf"\b{name}\b", lambda _, v=value: v, other)
            code = code.replace(text, other)
        return code

    def idle_rules(self) -> list:
        """Rules that replace nothing."""
        code = "".join(block.code for block in self.blocks)
        return [text for text, _ in self.rules if text not in code]

    def prose(self) -> str:
        """The text without its blocks and header."""
        return _FENCE.sub("", _RULES.sub("", self.text))


def run_python(page: Page, block: Block, code: str, namespace: dict) -> str:
    """What the block prints. Tracebacks give the page's line numbers."""
    compiled = compile("\n" * (block.line - 1) + code, str(page.path), "exec")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if block.raises is None:
            exec(compiled, namespace)
        else:
            _expect(page, block, compiled, namespace)
    return out.getvalue()


def _expect(page, block, compiled, namespace) -> None:
    name, words = block.raises
    try:
        exec(compiled, namespace)
    except Exception as error:
        wanted = resolve(name)
        assert isinstance(error, wanted), f"{page.path.name}:{block.line}: {error!r} is no {name}"
        assert words in str(error), f"{page.path.name}:{block.line}: {str(error)!r} does not say {words!r}"
        return
    raise AssertionError(f"{page.path.name}:{block.line}: nothing was raised")


# A plain wait returns 0 whatever became of the jobs.
_SHELL = """set -euo pipefail
wait() { local job; for job in $(jobs -p); do builtin wait "$job" || exit 1; done; }
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
"""


def run_shell(page: Page, block: Block, code: str, cwd, environment) -> str:
    """What the block prints; lines that install packages are left out. Background jobs end with the block."""
    lines = [line for line in code.splitlines() if not installs(line)]
    script = _SHELL + "\n".join(lines) + "\n"
    done = subprocess.run(["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{page.path.name}:{block.line}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def installs(line: str) -> bool:
    """A line that would change the machine."""
    return re.match(r"(sudo )?(pip|apt-get|\./tools/quickstart)\b", line.strip()) is not None


def check_unrun(page: Page, block: Block) -> None:
    """A block that cannot run here: it compiles, and each name it takes from bitpager exists."""
    tree = ast.parse("\n" * (block.line - 1) + block.code, str(page.path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                resolve(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if re.fullmatch(r"bitpager(\.\w+)+", name):
                resolve(name)


def resolve(name: str):
    """The object of a dotted name, or of a builtin."""
    head, *rest = name.split(".")
    if not rest:
        return getattr(__import__("builtins"), head)
    found = importlib.import_module(head)
    for index, part in enumerate(rest):
        if not hasattr(found, part):
            importlib.import_module(".".join([head, *rest[: index + 1]]))
        found = getattr(found, part)
    return found


def printed_as_said(said: str, printed: str) -> bool:
    """True when `printed` is `said`, whose lines of "..." stand for any lines. Ends of lines do not count."""

    def tidy(text):
        return [line.rstrip() for line in text.strip().splitlines()]

    pattern = "".join("(?:[^\n]*\n)*" if line == "..." else re.escape(line) + "\n" for line in tidy(said))
    return re.fullmatch(pattern, "".join(line + "\n" for line in tidy(printed))) is not None


def has_gpu() -> bool:
    """GPU blocks run."""
    return torch.cuda.is_available()
