"""The table of log formats, and who may read a line: known formats first, the generic one last.

A parser is pure: text in, Reading or None out. The only state is which family the output belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from remote_train.metrics.generic import parse_generic_start, parse_generic_step
from remote_train.metrics.parsers_gpt import (
    parse_build_nanogpt,
    parse_build_nanogpt_eval,
    parse_llmc,
    parse_llmc_eval,
    parse_modded,
    parse_nanochat,
    parse_nanogpt_eval,
    parse_nanogpt_iter,
)
from remote_train.metrics.parsers_large import (
    parse_composer,
    parse_composer_key,
    parse_deepspeed,
    parse_deepspeed_step,
    parse_dumped,
    parse_megatron,
    parse_megatron_eval,
    parse_nanotron,
    parse_picotron,
    parse_titan,
    parse_titan_start,
)
from remote_train.metrics.parsers_tuning import (
    parse_accelerate,
    parse_bar,
    parse_litgpt,
    parse_litgpt_eval,
    parse_litgpt_start,
    parse_torchtune,
    parse_torchtune_bar,
    parse_transformers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from remote_train.metrics.reading import Reading

# A line that holds none of these says nothing to any parser: what LineSplitter is given ("loss" and "Loss" are
# one needle, "okens" covers tokens per iteration, "lops" and "LOP" the spellings of FLOPs per token).
NEEDLES = (b"oss", b"LOSS", b"%|", b"okens", b"lops", b"LOP", b"Overriding", b"parameter", b"vocab_size")
# Every needle costs each byte of a log a look. These are only wanted once a line has told that the family prints
# here: DeepSpeed's and Megatron's lists of settings name a loss scale first, modded-nanogpt begins with a validation loss.
MORE_NEEDLES: Mapping[str, tuple[bytes, ...]] = {
    "modded-nanogpt": (b"step_avg",),
    "torchtitan": (b"Training starts",),
    "deepspeed": (b"SamplesPerSec", b"skipped=", b"train_batch_size", b"seq_length"),
    "composer": (b"atch=", b"oken=", b"throughput/", b"time/batch"),
}


@dataclass(frozen=True, slots=True)
class Parser:
    """One row of the table; `gate` is a piece of text without which `parse` need not be tried.

    A `poor` line tells less than others of its family: it counts only until one of those has been seen, once a step.
    """

    family: str
    per: Literal["device", "run"]
    gate: str
    parse: Callable[[str], Reading | None]
    poor: bool = False


PARSERS: tuple[Parser, ...] = (
    Parser("nanogpt", "device", ", time ", parse_nanogpt_iter),
    Parser("nanogpt", "run", ": train loss ", parse_nanogpt_eval),
    Parser("nanochat", "run", " | loss: ", parse_nanochat),
    Parser("build-nanogpt", "run", " | loss: ", parse_build_nanogpt),
    Parser("build-nanogpt", "run", "validation loss: ", parse_build_nanogpt_eval),
    Parser("llm.c", "run", " tok/s", parse_llmc),
    Parser("llm.c", "run", "val loss ", parse_llmc_eval),
    Parser("modded-nanogpt", "run", " train_time:", parse_modded),
    Parser("torchtitan", "device", "ps: ", parse_titan),
    Parser("torchtitan", "run", "Peak FLOPS used", parse_titan_start),
    Parser("torchtitan", "run", "Training starts", parse_titan_start),
    Parser("megatron", "device", "elapsed time per iteration (ms):", parse_megatron),
    Parser("megatron", "run", "validation loss at", parse_megatron_eval),
    Parser("nanotron", "device", "lm_loss: ", parse_nanotron),
    Parser("picotron", "device", "Tokens/s/GPU:", parse_picotron),
    Parser("accelerate", "device", "Average steps/s", parse_accelerate),
    Parser("torchtune", "device", "_per_gpu:", parse_torchtune),
    Parser("torchtune", "device", "|Loss: ", parse_torchtune_bar, poor=True),
    Parser("litgpt", "run", "iter time: ", parse_litgpt),
    Parser("litgpt", "run", ", val time: ", parse_litgpt_eval),
    Parser("litgpt", "run", "Measured TFLOPs: ", parse_litgpt_start),
    Parser("composer", "device", "=", parse_composer),
    Parser("composer", "device", " Train ", parse_composer_key),
    Parser("composer", "device", " Eval ", parse_composer_key),
    Parser("deepspeed", "run", "CurrSamplesPerSec=", parse_deepspeed),
    Parser("deepspeed", "run", "skipped=", parse_deepspeed_step, poor=True),
    Parser("deepspeed", "run", " ....", parse_dumped),
    Parser("transformers", "run", "loss'", parse_transformers),
    Parser("bar", "run", "%|", parse_bar),
    Parser("generic", "run", "", parse_generic_start),
    Parser("generic", "run", "", parse_generic_step),
)
# Which family has the say: one without a loss gives way to any other, the generic one to every known format.
_STANDING = {None: 0, "deepspeed": 1, "generic": 2}
_KNOWN = 3


class LogReader:
    """Read lines with the first parser that fits, and stay with the family of the first step line.

    The generic parser never takes over from a known family; a known family takes over from the generic one, and
    every family from DeepSpeed's own lines, which have no loss. `needles` are what lines of this output must hold,
    and grow.
    """

    def __init__(self) -> None:
        self.family: str | None = None
        self.needles: tuple[bytes, ...] = NEEDLES
        self._rows: tuple[Parser, ...] = PARSERS
        self._rich = False  # whether the family has printed a line that is not poor
        self._step: int | None = None

    def read(self, text: str) -> Reading | None:
        """Tell what the line says, or None."""
        for parser in self._rows:
            if parser.gate not in text:
                continue
            reading = parser.parse(text)
            if reading is not None:
                return reading if self._accept(reading, poor=parser.poor) else None
        return None

    def _accept(self, reading: Reading, *, poor: bool) -> bool:
        if reading.family in MORE_NEEDLES:
            self.needles = tuple(dict.fromkeys((*self.needles, *MORE_NEEDLES[reading.family])))
        if reading.kind in {"bar", "start"}:
            return True
        if reading.kind in {"step", "block"}:
            return self._accept_step(reading, poor=poor)
        if reading.kind == "eval" and self.family in {"generic", "deepspeed"}:
            return True
        return self.family in {None, reading.family}

    def _accept_step(self, reading: Reading, *, poor: bool) -> bool:
        if _STANDING.get(reading.family, _KNOWN) > _STANDING.get(self.family, _KNOWN):
            self._choose(reading.family)
        if self.family != reading.family or (poor and (self._rich or reading.step == self._step)):
            return False
        self._rich, self._step = self._rich or not poor, reading.step
        return True

    def _choose(self, family: str) -> None:
        self.family, self._rich, self._step = family, False, None
        if family not in _STANDING:  # nobody takes over from it: the others need not look at every line
            self._rows = tuple(
                row for row in PARSERS if row.family in {family, "bar"} or row.parse is parse_generic_start
            )
