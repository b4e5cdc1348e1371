"""nanoGPT's start lines to FLOPs per iteration and dtype. Text in, figures out; also of nanoGPT's many forks.

FLOPs per token are nanoGPT's own count (model.py, after PaLM's appendix B): 6N + 12LHQT, attention not halved. N is
the sum of the two "parameter tensors" lines less the T x C position embeddings. H x Q is the width C. The sizes
come from two places that check each other: the overrides over train.py's defaults, and the tensor lines themselves,
since a GPT of this shape has 4L + 2 decayed tensors of (V + T)C + 12LC^2 parameters. The tensor lines win: they
tell the truth also when a checkpoint brings its sizes (init_from) or somebody has edited train.py's defaults.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_train.metrics.reading import parse_count, parse_positive

if TYPE_CHECKING:
    from collections.abc import Mapping

A100_FLOPS = 312e12  # what nanoGPT divides by on every device
DEFAULTS: dict[str, object] = {  # nanoGPT's train.py, as of its commit 3adf61e
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "block_size": 1024,
    "batch_size": 12,
    "gradient_accumulation_steps": 5 * 8,
    "max_iters": 600000,
    "log_interval": 1,
    "eval_interval": 2000,
    "device": "cuda",
    "compile": True,
    "init_from": "scratch",
}
_CONFIG_LINE_CAP = 200  # characters: what an assignment of one number or word needs
_SETTINGS_CAP = 1000
_CONFIG_TEXT_CAP = 400  # lines of a config file that are read before we stop believing it is one

_FIRST_LETTERS = "Otnfd"  # of the lines below: most lines need no more than this look
_CONFIG_FILE = "Overriding config with "
_OVERRIDE = re.compile(r"Overriding: (?P<key>\w+) = (?P<value>.*)")
_ASSIGNMENT = re.compile(r"(?P<key>[A-Za-z_]\w*)\s*=(?!=)\s*(?P<value>'[^']*'|\"[^\"]*\"|[^#'\"]*)")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_CONSTANTS: dict[str, object] = {"True": True, "False": False, "None": None}
_TOKENS = re.compile(r"tokens per iteration will be: (?P<tokens>[\d,]+)")
_TENSORS = re.compile(
    r"num (?P<kind>decayed|non-decayed) parameter tensors: (?P<tensors>[\d,]+), with (?P<params>[\d,]+) parameters"
)
_PARAMETERS = re.compile(r"number of parameters: (?P<millions>[\d.]+)M")
_VOCABULARY = re.compile(
    r"found vocab_size = (?P<found>\d+)|defaulting to vocab_size of GPT-2 to (?P<default>\d+)"
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Layers L, width C, context T; `verified` when the tensor lines confirm them."""

    layers: int
    width: int
    context: int
    verified: bool


@dataclass(frozen=True, slots=True)
class Tensors:
    """One "parameter tensors" line."""

    count: int
    parameters: int


class StartLines:
    """Collect what nanoGPT prints before its first iteration; `see` each line in order.

    Lines of a second start in the same output (torchrun's restarts) replace those of the first.
    """

    def __init__(self) -> None:
        self._running = False
        self._clear()

    def _clear(self) -> None:
        self.settings: dict[str, object] = dict(DEFAULTS)
        self.tokens_per_iteration: int | None = None
        self.decayed: Tensors | None = None
        self.undecayed: Tensors | None = None
        self.printed_parameters: float | None = None
        self.vocabulary: int | None = None
        self._config_lines = 0

    @property
    def inside_config(self) -> bool:
        """Tell whether the next line may belong to the text of a config file."""
        return self._config_lines > 0

    def start_running(self) -> None:
        """Note that iterations have begun: the next start line belongs to a new start."""
        self._running = True
        self._config_lines = 0

    def see(self, text: str) -> bool:
        """Take in one line; tell whether it was one of nanoGPT's."""
        if not self._config_lines and text[0] not in _FIRST_LETTERS:
            return False
        if text.startswith(_CONFIG_FILE):
            self._restart_if_running()
            self._config_lines = _CONFIG_TEXT_CAP
            return True
        if self._see_override(text) or self._see_figures(text):
            self._config_lines = 0
            return True
        if self._config_lines:
            self._config_lines -= 1
            return self._see_assignment(text)
        return False

    def _restart_if_running(self) -> None:
        if self._running:
            self._running = False
            self._clear()

    def _see_override(self, text: str) -> bool:
        match = _OVERRIDE.match(text)
        if match is None:
            return False
        self._restart_if_running()
        self._keep(match["key"], _parse_printed(match["value"][:_CONFIG_LINE_CAP]))
        return True

    def _see_assignment(self, text: str) -> bool:
        match = _ASSIGNMENT.match(text[:_CONFIG_LINE_CAP])
        if match is None:
            return False
        self._keep(match["key"], _parse_setting(match["value"].strip(), self.settings))
        return True

    def _keep(self, key: str, value: object) -> None:
        """Take a setting; an output that makes up new ones without end is no config."""
        if key in self.settings or (len(self.settings) < _SETTINGS_CAP and len(key) <= _CONFIG_LINE_CAP):
            self.settings[key] = value

    def _see_figures(self, text: str) -> bool:
        if match := _TENSORS.match(text):
            self._see_tensors(match)
        elif match := _TOKENS.match(text):
            self._restart_if_running()
            self.tokens_per_iteration = parse_count(match["tokens"])
        elif match := _PARAMETERS.match(text):
            millions = parse_positive(match["millions"])
            self.printed_parameters = millions and millions * 1e6
        elif match := _VOCABULARY.match(text):
            self.vocabulary = parse_count(match["found"] or match["default"])
        else:
            return False
        return True

    def _see_tensors(self, match: re.Match[str]) -> None:
        count, parameters = parse_count(match["tensors"]), parse_count(match["params"])
        tensors = Tensors(count, parameters) if count and parameters else None
        if match["kind"] == "decayed":
            self.decayed = tensors
        else:
            self.undecayed = tensors

    def number(self, key: str) -> int | None:
        """Tell a setting that must be a whole number above 0; None when it is not known."""
        value = self.settings.get(key)
        return value if type(value) is int and 0 < value < 1_000_000_000 else None

    @property
    def inherited(self) -> bool:
        """Tell whether the sizes may come from a checkpoint instead of the settings."""
        return self.settings.get("init_from") != "scratch"


def choose_sizes(start: StartLines) -> Sizes | None:
    """Choose the sizes of the model; None when nothing trustworthy tells them.

    T after loading a checkpoint is block_size all the same: nanoGPT crops to it, and fails if it is larger.
    """
    context = start.number("block_size")
    shape = _parse_shape(start)
    if shape is not None:
        layers, width, positions = shape
        if start.vocabulary and 0 < positions - start.vocabulary != context and not start.inherited:
            return Sizes(layers, width, positions - start.vocabulary, verified=True)
        return Sizes(layers, width, context, verified=True) if context and context < positions else None
    layers_set, width_set = start.number("n_layer"), start.number("n_embd")
    if start.inherited or not (layers_set and width_set and context):
        return None
    return Sizes(layers_set, width_set, context, verified=False)


def _parse_shape(start: StartLines) -> tuple[int, int, int] | None:
    """Work out L, C and V + T from the tensor lines, if they are those of a GPT with or without biases."""
    if start.decayed is None or start.undecayed is None:
        return None
    layers, rest = divmod(start.decayed.count - 2, 4)
    if rest or layers < 1:
        return None
    # Vectors, in units of C: 2L + 1 norm weights; with biases as many norm biases, and 3 + 1 + 4 + 1 per layer.
    units = {2 * layers + 1: 2 * layers + 1, 8 * layers + 2: 13 * layers + 2}.get(start.undecayed.count)
    if units is None or start.undecayed.parameters % units:
        return None
    width = start.undecayed.parameters // units
    positions, rest = divmod(start.decayed.parameters - 12 * layers * width * width, width)
    return None if rest or positions < 2 else (layers, width, positions)


def compute_flops_per_token(start: StartLines) -> float | None:
    """Work out 6N + 12LHQT; None when N or the sizes are not known."""
    sizes = choose_sizes(start)
    if sizes is None:
        return None
    if start.decayed and start.undecayed:
        parameters: float = (
            start.decayed.parameters + start.undecayed.parameters - sizes.context * sizes.width
        )
    elif start.printed_parameters and start.printed_parameters >= 1e6:
        parameters = start.printed_parameters  # rounded to 0.01M: within 0.5 % from here on
    else:
        return None
    return 6 * parameters + 12 * sizes.layers * sizes.width * sizes.context if parameters > 0 else None


def compute_flops_per_iteration(start: StartLines) -> float | None:
    """Work out the FLOPs of one iteration on all devices: "tokens per iteration" counts every process."""
    per_token = compute_flops_per_token(start)
    return per_token and start.tokens_per_iteration and per_token * start.tokens_per_iteration


def choose_device_kind(start: StartLines) -> str:
    """Tell `cpu`, `cuda` or another word of torch's: what train.py was told to use."""
    return str(start.settings["device"]).partition(":")[0]


def choose_dtype(start: StartLines, kind: str, capability: tuple[int, int] | None) -> tuple[str, str] | None:
    """Choose the dtype of nanoGPT's matmuls on a `kind` of device, and how it is known; None when only the launcher can tell.

    Without CUDA autocast is off whatever `dtype` says. On a GPU float32 means TF32, which train.py allows. Without an
    override it takes bfloat16 where `torch.cuda.is_bf16_supported()`, which recent torch answers with yes by
    emulation also before Ampere; float16 is then an assumption, and is called one.
    """
    if kind != "cuda":
        return "float32", "nanoGPT without CUDA is always float32"
    stated = start.settings.get("dtype")
    if stated == "float32":
        allowed = capability is None or capability >= (8, 0)
        return (
            ("tf32", "dtype = float32, TF32 allowed by nanoGPT")
            if allowed
            else ("float32", "dtype = float32")
        )
    if isinstance(stated, str):
        return stated, f"dtype = {stated}, set for this run"
    if capability is None:
        return None
    if capability >= (8, 0):
        return "bfloat16", "nanoGPT's default where bfloat16 is supported"
    return "float16", f"nanoGPT's default on capability {capability[0]}.{capability[1]}, assumed"


def _parse_setting(value: str, settings: Mapping[str, object]) -> object:
    """Read a word in quotes, a name, a whole number, or a product like 5 * 8; None, unknown, for anything else."""
    if _QUOTED.fullmatch(value):
        return value[1:-1]
    factors = [_parse_factor(part.strip(), settings) for part in value.split("*")]
    if len(factors) == 1:
        return factors[0]
    whole = [factor for factor in factors if type(factor) is int]
    return math.prod(whole) if len(whole) == len(factors) else None


def _parse_factor(text: str, settings: Mapping[str, object]) -> object:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    number = parse_count(text)
    return settings.get(text) if number is None else number


def _parse_printed(value: str) -> object:
    """Read a value as nanoGPT prints it, words without quotes."""
    number = parse_count(value)
    return _CONSTANTS.get(value, value) if number is None else number
