"""Settings of the kind that a family's config files hold."""

out_dir = "out-tiny"
dataset = "tiny"
gradient_accumulation_steps = 1
eval_interval = 50
