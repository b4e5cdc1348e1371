"""Take settings from config files and --key=value, in order, into the globals of whoever executes this."""

import ast
import sys
from pathlib import Path

for argument in sys.argv[1:]:
    if "=" not in argument:
        print(f"Overriding config with {argument}:")
        exec(Path(argument).read_text())
        continue
    name, _, text = argument.removeprefix("--").partition("=")
    if name not in globals():
        raise SystemExit(f"Unknown config key: {name}")
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    print(f"Overriding: {name} = {value}")
    globals()[name] = value
