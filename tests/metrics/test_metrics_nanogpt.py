"""nanoGPT's start lines to FLOPs per iteration: the published sizes, where sizes come from, and the dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.metrics.nanogpt import (
    Sizes,
    StartLines,
    choose_device_kind,
    choose_dtype,
    choose_sizes,
    compute_flops_per_iteration,
    compute_flops_per_token,
)

DATA = Path(__file__).parent / "data"
TENSORS = [
    "num decayed parameter tensors: 18, with 802,944 parameters",
    "num non-decayed parameter tensors: 9, with 1,152 parameters",
]
SIZES = [
    "Overriding: n_layer = 4",
    "Overriding: n_head = 4",
    "Overriding: n_embd = 128",
    "Overriding: block_size = 64",
]
TOKENS = "tokens per iteration will be: 768"


def see(*lines: str) -> StartLines:
    start = StartLines()
    for line in lines:
        start.see(line)
    return start


def see_file(name: str) -> StartLines:
    return see(*[line for line in (DATA / name).read_text().splitlines() if line])


def test_the_seed_model_on_a_cpu() -> None:
    start = see_file("nanogpt_cpu.txt")
    assert choose_sizes(start) == Sizes(4, 128, 64, verified=True)
    assert compute_flops_per_token(start) == 5_168_640 == 6 * 795_904 + 12 * 4 * 128 * 64
    assert compute_flops_per_iteration(start) == pytest.approx(3.9695e9, rel=1e-4)
    assert (start.number("max_iters"), start.number("batch_size"), choose_device_kind(start)) == (
        2000,
        12,
        "cpu",
    )


def test_the_default_shakespeare_model() -> None:
    start = see_file("nanogpt_gpu.txt")
    assert compute_flops_per_token(start) == 6 * 10_646_784 + 12 * 6 * 384 * 256
    assert compute_flops_per_iteration(start) == pytest.approx(1.1626e12, rel=1e-4)


def test_train_py_without_arguments_is_gpt2() -> None:
    # V = 50304, no biases: 124,373,760 parameters in all, of which 1024 x 768 are positions.
    start = see(
        "tokens per iteration will be: 491,520",
        "defaulting to vocab_size of GPT-2 to 50304 (50257 rounded up for efficiency)",
        "num decayed parameter tensors: 50, with 124,354,560 parameters",
        "num non-decayed parameter tensors: 25, with 19,200 parameters",
    )
    assert choose_sizes(start) == Sizes(12, 768, 1024, verified=True)
    assert compute_flops_per_token(start) == 6 * (124_373_760 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert start.number("gradient_accumulation_steps") == 40


def test_gpt2_with_biases_is_recognised() -> None:
    start = see(
        "Overriding: init_from = gpt2",
        "num decayed parameter tensors: 50, with 124,318,464 parameters",
        "num non-decayed parameter tensors: 98, with 121,344 parameters",
    )
    assert choose_sizes(start) == Sizes(12, 768, 1024, verified=True)


def test_later_overrides_win() -> None:
    start = see(
        "Overriding config with a.py:", "n_layer = 6", "Overriding: n_layer = 4", "Overriding: n_layer = 5"
    )
    assert start.number("n_layer") == 5


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("n_layer = 6 # comment", "n_layer", 6),
        ("gradient_accumulation_steps = 5 * 8 # product", "gradient_accumulation_steps", 40),
        ("dtype = 'float16'", "dtype", "float16"),
        ('device = "cpu"  # here', "device", "cpu"),
        ("compile = False", "compile", False),
        ("lr_decay_iters = max_iters", "lr_decay_iters", 600000),
        ("n_embd = 64 * n_head", "n_embd", 768),
        ("n_embd = int(os.environ['E'])", "n_embd", None),
        ("learning_rate = 1e-3", "learning_rate", None),
    ],
)
def test_lines_of_a_config_file(line: str, key: str, value: object) -> None:
    start = see("Overriding config with config/x.py:", "# a comment", line)
    assert start.settings[key] == value


def test_assignments_outside_a_config_file_are_not_settings() -> None:
    start = see(
        "n_layer = 6",
        "Overriding config with x.py:",
        "tokens per iteration will be: 768",
        "n_layer = 7",
        "  n_layer = 8",
    )
    assert start.number("n_layer") == 12
    assert not start.inside_config


def test_a_config_text_without_an_end_is_not_believed_for_ever() -> None:
    start = see("Overriding config with x.py:", *["chatter"] * 400, "n_layer = 7")
    assert start.number("n_layer") == 12


def test_an_unknown_size_of_an_odd_model_leaves_the_flops_unknown() -> None:
    odd = ["num decayed parameter tensors: 19, with 802,944 parameters", TENSORS[1]]
    config = ["Overriding config with x.py:", "n_layer = depth()"]
    assert compute_flops_per_token(see(*config, TOKENS, *odd)) is None
    assert compute_flops_per_token(see(*SIZES, TOKENS, *odd)) == 5_168_640


def test_without_a_tokens_line_the_iteration_is_unknown() -> None:
    assert compute_flops_per_iteration(see(*SIZES, *TENSORS)) is None


def test_edited_defaults_are_seen_in_the_tensor_lines() -> None:
    start = see("found vocab_size = 65 (inside meta.pkl)", TOKENS, *TENSORS)
    assert choose_sizes(start) == Sizes(4, 128, 64, verified=True)


def test_a_resumed_model_is_known_by_its_tensor_lines() -> None:
    start = see("Overriding: init_from = resume", "Overriding: block_size = 64", TOKENS, *TENSORS)
    assert compute_flops_per_token(start) == 5_168_640


def test_an_inherited_odd_model_is_unknown() -> None:
    odd = "num decayed parameter tensors: 19, with 802,944 parameters"
    assert choose_sizes(see("Overriding: init_from = resume", *SIZES, odd, TENSORS[1])) is None


def test_the_printed_size_serves_where_there_are_no_tensor_lines() -> None:
    start = see(
        "number of parameters: 10.65M",
        "Overriding: n_layer = 6",
        "Overriding: n_embd = 384",
        "Overriding: block_size = 256",
    )
    assert compute_flops_per_token(start) == pytest.approx(6 * 10_646_784 + 12 * 6 * 384 * 256, rel=0.005)
    assert compute_flops_per_token(see("number of parameters: 0.80M", *SIZES)) is None  # too round


def test_a_second_start_replaces_the_first() -> None:
    start = see(*SIZES, TOKENS, *TENSORS)
    start.start_running()
    start.see("Overriding: n_layer = 6")
    assert (start.number("n_layer"), start.number("n_embd"), start.decayed) == (6, 768, None)


@pytest.mark.parametrize(
    ("lines", "kind", "capability", "dtype"),
    [
        ([], "cpu", None, "float32"),
        (["Overriding: dtype = float16"], "cpu", None, "float32"),
        ([], "cuda", (8, 9), "bfloat16"),
        ([], "cuda", (7, 5), "float16"),
        (["Overriding: dtype = float16"], "cuda", (8, 9), "float16"),
        (["Overriding: dtype = float32"], "cuda", (8, 9), "tf32"),
        (["Overriding: dtype = float32"], "cuda", (7, 0), "float32"),
    ],
)
def test_dtypes(lines: list[str], kind: str, capability: tuple[int, int] | None, dtype: str) -> None:
    chosen = choose_dtype(see(*lines), kind, capability)
    assert chosen is not None
    assert chosen[0] == dtype
    assert chosen[1]


def test_the_default_dtype_on_an_unknown_gpu_is_for_the_launcher_to_say() -> None:
    assert choose_dtype(StartLines(), "cuda", None) is None


@given(st.integers(1, 48), st.integers(1, 32), st.integers(1, 2048), st.integers(1, 60000), st.booleans())
def test_sizes_come_back_from_the_tensor_lines(
    layers: int, heads: int, context: int, vocabulary: int, biases: bool
) -> None:
    width = 8 * heads
    decayed = (vocabulary + context) * width + 12 * layers * width * width
    tensors, units = (8 * layers + 2, 13 * layers + 2) if biases else (2 * layers + 1, 2 * layers + 1)
    start = see(
        "Overriding: init_from = resume",
        f"Overriding: block_size = {context}",
        f"num decayed parameter tensors: {4 * layers + 2}, with {decayed:,} parameters",
        f"num non-decayed parameter tensors: {tensors}, with {units * width:,} parameters",
    )
    assert choose_sizes(start) == Sizes(layers, width, context, verified=True)


@given(
    st.lists(
        st.sampled_from(
            ["Overriding config with x:", "n_layer = ", "Overriding: ", "= 5", "'", " * ", "#", "7", "\\d"]
        ).map(str)
    )
)
def test_hostile_start_lines_raise_nothing(words: list[str]) -> None:
    line = "".join(words)
    if line:
        see("Overriding config with x:", line, line * 9)


def test_settings_made_up_without_end_take_no_memory_without_end() -> None:
    start = StartLines()
    for number in range(5000):
        start.see(f"Overriding: made_up_{number} = {'9' * 5000}")
    start.see(f"Overriding: {'k' * 5000} = 1")
    start.see("Overriding: n_layer = 3")
    assert len(start.settings) <= 1000
    assert start.number("n_layer") == 3
    assert sum(len(str(value)) for value in start.settings.values()) < 300_000
