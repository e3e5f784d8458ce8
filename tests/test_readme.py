"""The README's Python block runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_block_runs():
    [block] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block.replace("epochs=50", "epochs=2"), "README.md", "exec"), names)
    assert names["posterior"].targets().shape == (26, 8)


def test_commands_it_names_exist():
    from typer.testing import CliRunner

    from pyro_cge.cli import app

    for command in set(re.findall(r"^pyro-cge (\w+)", README, flags=re.MULTILINE)):
        text = CliRunner().invoke(app, [command, "--help"], terminal_width=200).output
        used = re.findall(rf"^pyro-cge {command}((?:.|\\\n)*?)$(?<!\\)", README, flags=re.MULTILINE)
        for option in {o for line in used for o in re.findall(r"--[a-z-]+", line)}:
            assert option in text, (command, option)
